"""`Check`: a learner's function against the reference, on fresh random inputs, with targeted hints.

Each check knows the usual mistakes as functions of their own: if yours gives what a mistake gives, the hint
for that mistake is printed. A stub that returns None counts as not attempted, and the notebook goes on.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch

TRIES = 5
OUTCOMES: dict[str, str] = {}  # exercise -> the mark of its last verdict in this kernel: ✓, ✗ or ·


@dataclass(frozen=True)
class Check:
    """One exercise. `inputs(rng)` makes the arguments; `mistakes` maps a hint to the function that errs so."""

    name: str
    reference: Callable
    inputs: Callable[[random.Random], tuple]
    mistakes: dict[str, Callable] = field(default_factory=dict)

    def __call__(self, function: Callable) -> bool:
        """Try the function; print the verdict and remember its mark for `ga.checks.progress`. True if it passed."""
        verdict = self.verdict(function)
        OUTCOMES[self.name] = verdict[0]
        print(verdict)
        return verdict.startswith("✓")

    def verdict(self, function: Callable) -> str:
        rng = random.Random()
        trials = [self.inputs(rng) for _ in range(TRIES)]
        for args in trials:
            expected, given = self.reference(*_copies(args)), _copies(args)
            try:
                got = function(*given)
            except Exception as error:  # whatever a learner's code raises is part of the lesson, not of ours
                return f"✗ {self.name}: your function raised {type(error).__name__}: {error}"
            if got is None:
                return f"· {self.name}: not attempted yet (the function returns None)"
            if not _same(got, expected):
                return f"✗ {self.name}: {self._hint(function, trials) or _difference(got, expected)}"
            if not all(
                _same(after, before) for after, before in zip(given, args) if isinstance(before, torch.Tensor)
            ):
                return f"✗ {self.name}: right, but you changed the tensor that you were given: work on a copy, z.clone()"
        return f"✓ {self.name}: right, on {TRIES} random inputs"

    def _hint(self, function: Callable, trials: list[tuple]) -> str | None:
        """The hint of the mistake that gives just what this function gives, on every trial."""
        for hint, mistake in self.mistakes.items():
            try:
                if all(_same(function(*_copies(args)), mistake(*_copies(args))) for args in trials):
                    return hint
            except Exception:  # wrong on one input, raising on another: no usual mistake
                return None
        return None


def random_tensor(rng: random.Random, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(rng.getrandbits(32)))


def _copies(args: tuple) -> list:
    """Fresh arguments, so that a function that changes one in place spoils nothing."""
    return [a if callable(a) else copy.deepcopy(a) for a in args]


def _same(a, b) -> bool:
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
    if isinstance(expected, torch.Tensor):
        if not isinstance(got, torch.Tensor):
            return f"expected a tensor of shape {tuple(expected.shape)}, got {type(got).__name__}"
        if got.shape != expected.shape:
            return f"expected shape {tuple(expected.shape)}, got {tuple(got.shape)}"
        return f"right shape, but values differ by up to {(got.double() - expected.double()).abs().max():.3g}"
    return f"expected {expected!r}, got {got!r}"
