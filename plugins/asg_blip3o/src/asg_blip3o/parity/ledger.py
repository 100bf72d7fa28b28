"""Nested manifest entries, read with a record of what was read, so that no recorded value goes unchecked."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor

from asg_core.testing.parity import ParityRun


class Ledger:
    """One manifest entry with nested values; each leaf must be taken.

    Args:
        run: the run that reports.
        key: top-level manifest key.
    """

    def __init__(self, run: ParityRun, key: str) -> None:
        self.run, self.key = run, key
        self.values: dict[str, Any] = run.value(key)
        self._left = set(_leaves(self.values, ()))

    def take(self, *path: str) -> Any:
        """The value at ``path``; marks it and all below it as read. Raises KeyError if there is none."""
        value: Any = self.values
        for part in path:
            value = value[part]
        self._left = {leaf for leaf in self._left if leaf[: len(path)] != path}
        return value

    def finish(self) -> None:
        """Report every value that nothing read as a failed case."""
        for leaf in sorted(self._left):
            self.run.equal(f"unknown case {'.'.join((self.key, *leaf))}", "not read", "read")


def _leaves(value: Any, path: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    if isinstance(value, dict):
        for key, below in value.items():
            yield from _leaves(below, (*path, key))
    else:
        yield path


def close(run: ParityRun, name: str, actual: Tensor | float, expected: Tensor | float) -> None:
    """Compare at the fixture's tolerance: 1e-4 of the expectation's largest magnitude."""
    largest = float(expected.abs().max()) if isinstance(expected, Tensor) else abs(expected)
    run.close(name, actual, expected, 1e-4 * max(largest, 1e-6))
