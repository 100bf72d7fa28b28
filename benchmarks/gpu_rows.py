"""Rows of ``gpu.py``: a clock that waits for the device, sections within a time budget, checks and bars."""

from __future__ import annotations

import gc
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch

GIB = 2**30


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        section: it belongs to, e.g. "decode".
        name: what was measured; "" for a section as a whole.
        value: in ``unit``; None if there is none.
        unit: "ms", "s", "GiB", "x", "relative", "nats", "share", "syncs".
        status: "ok", "failed" (an error, or a check above its limit), "missed" (a bar that was not reached), "not run".
        bound: the least possible value in the same unit, counted from parameters and tokens; None if not counted.
        limit: largest allowed value of a check or a bar, least one where the unit is "x"; None for a measurement.
        peak_gib: largest allocated device memory up to this row of its section, without other models; None on a CPU.
        planned_gib: what ``asg plan`` says it would be; None if not planned.
        note: what a reader must know.
    """

    section: str
    name: str = ""
    value: float | None = None
    unit: str = ""
    status: Literal["ok", "failed", "missed", "not run"] = "ok"
    bound: float | None = None
    limit: float | None = None
    peak_gib: float | None = None
    planned_gib: float | None = None
    note: str = ""

    @property
    def roofline_share(self) -> float | None:
        """The least possible value over the measured one, in [0, 1] for a bound that holds."""
        return self.bound / self.value if self.value and self.bound is not None else None


def check(section: str, name: str, value: float, limit: float, unit: str, note: str = "") -> Row:
    """A correctness row: failed unless ``value`` is finite and at most ``limit``."""
    passed = value <= limit  # False for NaN
    return Row(section, name, value, unit, "ok" if passed else "failed", limit=limit, note=note)


def against(row: Row, bar: float | None) -> Row:
    """``row`` with a performance bar: at least, for ratios ("x"), at most for the rest. None: no bar."""
    if bar is None or row.value is None:
        return row
    reached = row.value >= bar if row.unit == "x" else row.value <= bar
    return replace(row, limit=bar, status="ok" if reached else "missed")


@dataclass(frozen=True)
class Section:
    """A part of the benchmark.

    Attributes:
        name: of the section, without commas.
        run: yields its rows as they are measured; anything it raises becomes one failed row.
        expected: seconds until its first row, asked when its turn comes; 0 if nothing is known.
    """

    name: str
    run: Callable[[], Iterator[Row]]
    expected: Callable[[], float] = lambda: 0.0


class Deadline:
    """A moment in the future, in seconds from now."""

    def __init__(self, seconds: float) -> None:
        self._end = time.perf_counter() + seconds

    @property
    def left(self) -> float:
        """Seconds; negative once it has passed."""
        return self._end - time.perf_counter()


Save = Callable[[Row], None]
"""Keeps a row as soon as it is there, so that an interrupted run leaves what it has."""


def run_section(section: Section, deadline: Deadline, device: torch.device, save: Save, others: int = 0) -> None:
    """All rows of a section, or one that says why not: out of time, out of memory, or another failure.

    The deadline is looked at before every row, so a long section ends with those that it has. ``others`` bytes of the
    device hold other models and do not count as its peak.
    """
    expected, left = section.expected(), deadline.left
    if left <= 0 or expected > left:
        why = f"out of time: {max(left, 0):.0f} s left" + (f", needs {expected:.0f} s" if expected else "")
        return _keep(Row(section.name, status="not run", note=why), save)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    try:
        for row in section.run():
            peak = (torch.cuda.max_memory_allocated(device) - others) / GIB if device.type == "cuda" else None
            _keep(replace(row, peak_gib=peak), save)
            if deadline.left <= 0:
                _keep(Row(section.name, status="not run", note="out of time: what else there is of the section"), save)
                break
    except torch.OutOfMemoryError as error:
        _keep(Row(section.name, status="failed", note=f"out of memory: {_one_line(error)}"), save)
    except Exception as error:  # noqa: BLE001 - a section that fails must not take the others with it
        traceback.print_exc()
        _keep(Row(section.name, status="failed", note=f"{type(error).__name__}: {_one_line(error)}"), save)
    release_memory(device)
    return None


def run_sections(sections: Sequence[Section], deadline: Deadline, device: torch.device, save: Save) -> None:
    """:func:`run_section` for each."""
    for section in sections:
        run_section(section, deadline, device, save)


def _keep(row: Row, save: Save) -> None:
    value = "" if row.value is None else f"{row.value:.4g} {row.unit}"
    print(f"  {row.status:8} {row.section} {row.name} {value} {row.note}".rstrip(), flush=True)
    save(row)


def timed(device: torch.device, work: Callable[[], object]) -> float:
    """Seconds that ``work`` takes, with everything that it started on the device finished."""
    wait(device)
    start = time.perf_counter()
    work()
    wait(device)
    return time.perf_counter() - start


def wait(device: torch.device) -> None:
    """Until the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def release_memory(device: torch.device) -> None:
    """Drop what nothing refers to any more and give its blocks back, so that the next section starts without it."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
