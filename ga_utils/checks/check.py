"""`Check`: compares a learner's function with the reference on random inputs, the same at every call.

Usual mistakes are functions, too, each under the hint it deserves: if the learner's function gives what a
mistake gives, the learner sees that hint. A stub that returns None counts as not attempted.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch

from ga_utils.heads import Head

TRIES = 10
OUTCOMES: dict[str, str] = {}  # name of the exercise -> mark of its latest verdict in this kernel: ✓, ✗ or ·


@dataclass(frozen=True)
class Check:
    """One exercise.

    reference: the right function.
    inputs: makes the arguments of one trial from a random number generator.
    mistakes: {hint: the function of somebody who makes this mistake}; the first that fits is taken.
    """

    name: str
    reference: Callable
    inputs: Callable[[random.Random], tuple]
    mistakes: dict[str, Callable] = field(default_factory=dict)

    def __call__(self, function: Callable) -> bool:
        """Try the function and print the verdict, which `ga.checks.progress` remembers. True if it passed."""
        verdict = self.verdict(function)
        OUTCOMES[self.name] = verdict[0]
        print(verdict)
        return verdict.startswith("✓")

    def verdict(self, function: Callable) -> str:
        """One line that begins with ✓ (right), ✗ (wrong, and why) or · (not attempted)."""
        if not callable(function):
            return (
                f"✗ {self.name}: pass the function itself, not its result: ga.checks.{self.name}({self.name})"
            )
        rng = random.Random(self.name)  # the same answer gets the same verdict each time
        trials = [self.inputs(rng) for _ in range(TRIES)]
        for args in trials:
            expected, given = self.reference(*_copies(args)), _copies(args)
            try:
                got = function(*given)
            except Exception as error:  # whatever the learner's code raises, the notebook must go on
                return f"✗ {self.name}: your function raised {type(error).__name__}: {error}"
            if got is None:
                return f"· {self.name}: not attempted yet (the function returns None)"
            if not _same(got, expected):
                return f"✗ {self.name}: {self._hint(function, trials) or _difference(got, expected)}"
            for after, before in zip(given, args):
                if not callable(before) and not _same(after, before):
                    what = (
                        "tensor you were given: work on a .clone()"
                        if _is_tensor(before)
                        else (f"{type(before).__name__} you were given: work on a copy")
                    )
                    return f"✗ {self.name}: right, but you changed the {what}"
        return f"✓ {self.name}: right, on {TRIES} random inputs"

    def _hint(self, function: Callable, trials: list[tuple]) -> str | None:
        """The hint of the first mistake that gives what the function gives, on every trial."""
        for hint, mistake in self.mistakes.items():
            try:
                if all(_same(function(*_copies(args)), mistake(*_copies(args))) for args in trials):
                    return hint
            except Exception:  # one of the two raises on some input: not this mistake
                continue
        return None


def random_tensor(rng: random.Random, *shape: int) -> torch.Tensor:
    """Standard normal numbers that depend on `rng` alone."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(rng.getrandbits(32)))


def _copies(args: tuple) -> list:
    """Fresh arguments for each call, because a learner's function may change them in place."""
    return [arg if callable(arg) else copy.deepcopy(arg) for arg in args]


def _is_tensor(value) -> bool:
    return isinstance(value, torch.Tensor)


def _same(a, b) -> bool:
    """Whether `a` is what `b` is, for all that a learner cares.

    Numbers to 1e-5, whatever made them; a list for a tuple; a `Head` for its name. But an integer is no
    float or tensor, and True is not 1.
    """
    if isinstance(b, torch.Tensor | np.ndarray | float):
        try:
            a, b = torch.as_tensor(a).double(), torch.as_tensor(b).double()
        except (TypeError, ValueError, RuntimeError):
            return False
        return a.shape == b.shape and torch.allclose(a, b, atol=1e-5, equal_nan=True)
    if isinstance(b, list | tuple):
        return isinstance(a, list | tuple) and len(a) == len(b) and all(map(_same, a, b))
    if isinstance(b, dict):
        if not isinstance(a, dict) or len(a) != len(b):
            return False
        named = {_plain(key): value for key, value in a.items()}
        return all(_plain(key) in named and _same(named[_plain(key)], b[key]) for key in b)
    if isinstance(b, set):
        return isinstance(a, set) and set(map(_plain, a)) == set(map(_plain, b))
    a, b = _plain(a), _plain(b)
    return type(a) is type(b) and a == b


def _plain(value):
    """A head by its name, a number of NumPy's as Python's."""
    if isinstance(value, Head):
        return str(value)
    return value.item() if isinstance(value, np.generic) else value


def _difference(got, expected) -> str:
    """What to say about a wrong value that no usual mistake explains."""
    if _is_tensor(expected):
        if not _is_tensor(got):
            return f"expected a tensor of shape {tuple(expected.shape)}, got {type(got).__name__}"
        if got.shape != expected.shape:
            return f"expected shape {tuple(expected.shape)}, got {tuple(got.shape)}"
        return f"right shape, but values differ by up to {(got.double() - expected.double()).abs().max():.3g}"
    return f"expected {expected!r}, got {got!r}"
