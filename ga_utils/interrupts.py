"""The Stop button and Ctrl-C, kept out of the moments in which a model is being changed or mended.

Python raises KeyboardInterrupt between any two steps of the main thread: also when a hook is in place already, but the
`try` that would take it off has not begun, or in the middle of a `finally`.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


class Gate:
    """Lets interrupts through to `before`, the handler that was there, only where it is `opened`; others wait."""

    def __init__(self, before: Callable | None = None):
        self.before, self.is_open, self.waiting = before, False, False

    def handle(self, number: int, frame: FrameType | None) -> None:
        # Inside `__enter__` and `__exit__` of context managers nothing is raised either: half of their work may be done.
        if self.is_open and not (frame and frame.f_code.co_filename == contextlib.__file__):
            self.before(number, frame)
        else:
            self.waiting = True

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Inside, an interrupt is raised at once, and so is one that was waiting."""
        try:
            self.is_open = True
            if self.waiting:
                self.waiting = False
                signal.raise_signal(signal.SIGINT)
            yield
        finally:
            self.is_open = False


@contextmanager
def held() -> Iterator[Gate]:
    """Inside, interrupts wait, but for where the gate that it gives is opened; one that waits is raised at the end.

    Changes to a model belong in here, and what takes long into `with gate.opened()`.
    """
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield Gate()  # no interrupt is ever raised here
        return
    gate = Gate(before)
    signal.signal(signal.SIGINT, gate.handle)
    try:
        yield gate
    finally:
        signal.signal(signal.SIGINT, before)
        gate.is_open = True  # should anybody have kept its handler
        if gate.waiting:
            signal.raise_signal(signal.SIGINT)
