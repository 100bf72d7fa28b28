"""Parity runner: replay recorded cases of an original implementation and compare number by number.

A fixture folder holds ``manifest.json``, ``cases.safetensors`` and a checkpoint. The plugin's parity function reads
what it needs through :class:`ParityRun`, which remembers what was read: a tensor or manifest key that no case consumed
is reported as unknown and fails the run, so that a fixture can never be half checked.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from asg_core.errors import AsgError, ConfigError


@dataclass(frozen=True)
class ParityCase:
    """One comparison. ``error`` is the largest absolute difference (0 or 1 if exact), ``note`` says what failed."""

    name: str
    error: float
    tolerance: float
    note: str = ""

    @property
    def passed(self) -> bool:
        """Whether the error is within tolerance; NaN never is."""
        return self.error <= self.tolerance


@dataclass
class ParityReport:
    """All cases of one fixture."""

    cases: list[ParityCase] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Whether there is at least one case and every one passed."""
        return bool(self.cases) and all(case.passed for case in self.cases)


class ParityRun:
    """A fixture being replayed. Plugins get one, read from it, and report comparisons to it.

    Args:
        fixture: folder with ``manifest.json`` and ``cases.safetensors``.

    Raises:
        ConfigError: the folder is not a fixture.
    """

    def __init__(self, fixture: Path) -> None:
        self.fixture = fixture
        self.report = ParityReport()
        try:
            self._manifest: dict[str, Any] = json.loads((fixture / "manifest.json").read_text(encoding="utf-8"))
            self._tensors = load_file(fixture / "cases.safetensors")
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"{fixture} is not a parity fixture",
                str(error),
                "give a folder with manifest.json and cases.safetensors",
            ) from error
        self._unused_tensors = set(self._tensors)
        self._unused_keys = set(self._manifest)

    def names(self, prefix: str = "") -> list[str]:
        """Names of all recorded tensors that start with ``prefix``, sorted; reading names consumes nothing."""
        return sorted(name for name in self._tensors if name.startswith(prefix))

    def keys(self, prefix: str = "") -> list[str]:
        """Top-level manifest keys that start with ``prefix``, sorted; consumes nothing."""
        return sorted(key for key in self._manifest if key.startswith(prefix))

    def tensor(self, name: str) -> Tensor:
        """A recorded tensor, input or expectation; marks it as consumed. Raises KeyError if there is none."""
        self._unused_tensors.discard(name)
        recorded: Tensor = self._tensors[name]
        return recorded

    def value(self, key: str) -> Any:
        """A top-level manifest entry; marks it as consumed. Raises KeyError if there is none."""
        self._unused_keys.discard(key)
        return self._manifest[key]

    def close(self, name: str, actual: Tensor | float, expected: Tensor | float, tolerance: float) -> None:
        """Compare numbers: the largest absolute difference must be <= ``tolerance`` and the shapes equal."""
        got, want = torch.as_tensor(actual).detach().cpu().double(), torch.as_tensor(expected).cpu().double()
        if got.shape != want.shape:
            self.report.cases.append(
                ParityCase(name, float("inf"), tolerance, f"shape {tuple(got.shape)}, expected {tuple(want.shape)}")
            )
            return
        self.report.cases.append(ParityCase(name, float((got - want).abs().max()) if got.numel() else 0.0, tolerance))

    def equal(self, name: str, actual: object, expected: object) -> None:
        """Compare exactly: ids, sizes, bits, texts."""
        if isinstance(actual, Tensor) and isinstance(expected, Tensor):
            same = actual.shape == expected.shape and bool((actual.cpu() == expected.cpu()).all())
        else:
            same = actual == expected
        note = "" if same else f"got {str(actual)[:80]}, expected {str(expected)[:80]}"
        self.report.cases.append(ParityCase(name, 0.0 if same else 1.0, 0.0, note))

    @contextmanager
    def case(self, name: str) -> Iterator[None]:
        """Run one case so that its AsgError or arithmetic failure is reported and the next case still runs."""
        try:
            yield
        except (AsgError, ArithmeticError, KeyError, ValueError, TypeError, RuntimeError, IndexError) as error:
            self.report.cases.append(ParityCase(name, float("inf"), 0.0, f"{type(error).__name__}: {error}"))

    def finish(self, informational: Iterable[str] = ()) -> ParityReport:
        """Report everything that no case consumed as unknown; ``informational`` manifest keys are exempt."""
        for name in sorted(self._unused_tensors):
            self.report.cases.append(ParityCase(f"unknown tensor {name}", float("inf"), 0.0, "no case reads it"))
        for key in sorted(self._unused_keys - set(informational)):
            self.report.cases.append(ParityCase(f"unknown case {key}", float("inf"), 0.0, "no case reads it"))
        return self.report


def run_parity(replay: Callable[[ParityRun], ParityReport], fixture: Path) -> ParityReport:
    """Replay ``fixture`` with a plugin's parity function in float32 on one thread, deterministic."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return replay(ParityRun(fixture))
    finally:
        torch.set_num_threads(threads)
