"""`Check`: compares a learner's function with the reference on fresh random inputs.

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

TRIES = 5
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
        rng = random.Random()
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
            changed = (not _same(after, before) for after, before in zip(given, args) if _is_tensor(before))
            if any(changed):
                return f"✗ {self.name}: right, but you changed the tensor you were given: work on z.clone()"
        return f"✓ {self.name}: right, on {TRIES} random inputs"

    def _hint(self, function: Callable, trials: list[tuple]) -> str | None:
        """The hint of the first mistake that gives what the function gives, on every trial."""
        for hint, mistake in self.mistakes.items():
            try:
                if all(_same(function(*_copies(args)), mistake(*_copies(args))) for args in trials):
                    return hint
            except Exception:  # wrong on one input and raising on another: not a usual mistake
                return None
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
    """Whether `a` is what `b` is: the same value to 1e-5 for numbers, equal and of one type for the rest."""
    if isinstance(b, torch.Tensor | np.ndarray | float):
        try:
            a, b = torch.as_tensor(a).double(), torch.as_tensor(b).double()
        except (TypeError, ValueError, RuntimeError):
            return False
        return a.shape == b.shape and torch.allclose(a, b, atol=1e-5)
    if isinstance(a, tuple) and isinstance(b, tuple):
        return len(a) == len(b) and all(map(_same, a, b))
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_same(a[key], b[key]) for key in b)
    return type(a) is type(b) and a == b


def _difference(got, expected) -> str:
    """What to say about a wrong value that no usual mistake explains."""
    if _is_tensor(expected):
        if not _is_tensor(got):
            return f"expected a tensor of shape {tuple(expected.shape)}, got {type(got).__name__}"
        if got.shape != expected.shape:
            return f"expected shape {tuple(expected.shape)}, got {tuple(got.shape)}"
        return f"right shape, but values differ by up to {(got.double() - expected.double()).abs().max():.3g}"
    return f"expected {expected!r}, got {got!r}"
