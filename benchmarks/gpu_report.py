"""Rows of ``gpu.py``: a clock that waits for the device, guarded sections, the table and the JSON file."""

from __future__ import annotations

import gc
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import torch

from asg_core.errors import ConfigError
from asg_core.planning import Accelerator, find_accelerator

PACKAGES = ("asg-core", "torch", "transformers", "diffusers", "peft", "accelerate")
GIB = 2**30


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        section: it belongs to, e.g. "decode".
        name: what was measured; "" for a section as a whole.
        value: in ``unit``; None if there is none.
        unit: "ms", "s", "GiB", "x", "relative", "nats".
        status: "ok", "failed", or "not run".
        bound: the least possible value in the same unit, counted from parameters and tokens; None if not counted.
        limit: largest allowed value of a correctness check; None for a measurement.
        peak_gib: largest allocated device memory of the section, None on a CPU.
        note: what a reader must know.
    """

    section: str
    name: str = ""
    value: float | None = None
    unit: str = ""
    status: Literal["ok", "failed", "not run"] = "ok"
    bound: float | None = None
    limit: float | None = None
    peak_gib: float | None = None
    note: str = ""

    @property
    def gap(self) -> float | None:
        """How many times the least possible value."""
        return self.value / self.bound if self.value is not None and self.bound else None


@dataclass(frozen=True)
class Section:
    """A part of the benchmark.

    Attributes:
        name: of the section.
        run: gives its rows; anything it raises becomes one failed row.
        expected: seconds it will take, asked when its turn comes; 0 if nothing is known.
    """

    name: str
    run: Callable[[], list[Row]]
    expected: Callable[[], float] = lambda: 0.0


class Deadline:
    """A moment in the future, in seconds from now."""

    def __init__(self, seconds: float) -> None:
        self._end = time.perf_counter() + seconds

    @property
    def left(self) -> float:
        """Seconds; negative once it has passed."""
        return self._end - time.perf_counter()


def timed(device: torch.device, work: Callable[[], object]) -> float:
    """Seconds that ``work`` takes, with everything that it started on the device finished."""
    _wait(device)
    start = time.perf_counter()
    work()
    _wait(device)
    return time.perf_counter() - start


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def release_memory(device: torch.device) -> None:
    """Drop what nothing refers to any more and give its blocks back, so that the next section starts without it."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def run_sections(sections: Sequence[Section], deadline: Deadline, device: torch.device) -> list[Row]:
    """Every section, or a row that says why not: out of time, out of memory, or another failure."""
    rows: list[Row] = []
    for section in sections:
        expected, left = section.expected(), deadline.left
        if left <= 0 or expected > left:
            why = f"out of time: {max(left, 0):.0f} s left" + (f", needs {expected:.0f} s" if expected else "")
            rows.append(Row(section.name, status="not run", note=why))
            print(f"  {_plain(rows[-1])}", flush=True)
            continue
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        try:
            found = section.run()
        except torch.OutOfMemoryError as error:
            found = [Row(section.name, status="failed", note=f"out of memory: {_one_line(error)}")]
        except Exception as error:  # noqa: BLE001 - a section that fails must not take the others with it
            found = [Row(section.name, status="failed", note=f"{type(error).__name__}: {_one_line(error)}")]
        peak = torch.cuda.max_memory_allocated(device) / GIB if device.type == "cuda" else None
        rows += [Row(**{**asdict(row), "peak_gib": peak}) for row in found]
        for row in rows[-len(found) :]:
            print(f"  {_plain(row)}", flush=True)
        del found
        release_memory(device)
    return rows


def check(section: str, name: str, value: float, limit: float, unit: str, note: str = "") -> Row:
    """A correctness row: failed unless ``value`` is finite and at most ``limit``."""
    passed = value <= limit  # False for NaN
    return Row(section, name, value, unit, "ok" if passed else "failed", limit=limit, note=note)


def accelerator_of(device: torch.device, name: str | None) -> Accelerator | None:
    """Rates of the device, by ``name`` or by what CUDA reports; None if they are not known."""
    if name is not None:
        return find_accelerator(name)
    try:
        return find_accelerator(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
    except ConfigError:
        return None


def device_name(device: torch.device) -> str:
    """As CUDA reports it."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


def _plain(row: Row) -> str:
    value = "" if row.value is None else f"{row.value:.4g} {row.unit}"
    return f"{row.status:8} {row.section} {row.name} {value} {row.note}".rstrip()


def markdown(results: dict[str, list[Row]]) -> str:
    """One table for all backbones."""
    lines = [
        "| backbone | section | what | value | limit | bound | gap | peak GiB | note |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, rows in results.items():
        for row in rows:
            value = row.status if row.value is None else f"{row.value:.4g} {row.unit}"
            value = f"FAILED {value}" if row.status == "failed" and row.value is not None else value
            numbers = (row.limit, row.bound, row.gap, row.peak_gib)
            cells = [name, row.section, row.name, value, *("" if n is None else f"{n:.3g}" for n in numbers), row.note]
            lines.append("| " + " | ".join(cell.replace("|", "/") for cell in cells) + " |")
    return "\n".join(lines)


def header(device: torch.device, scale: str, dtype: str, seconds: float) -> dict[str, object]:
    """Date, versions, device and circumstances of a run."""
    return {
        "date": datetime.now().astimezone().isoformat(timespec="seconds"),
        "versions": {package: version(package) for package in PACKAGES},
        "cuda": torch.version.cuda,
        "device": device_name(device),
        "scale": scale,
        "dtype": dtype,
        "seconds": round(seconds, 1),
    }


def write_json(file: Path, head: dict[str, object], results: dict[str, list[Row]]) -> None:
    """Header and all rows. Numbers that JSON does not have (NaN, infinity) become null."""

    def plain(value: object) -> object:
        return None if isinstance(value, float) and not abs(value) < float("inf") else value

    rows = {
        name: [{**{k: plain(v) for k, v in asdict(row).items()}, "gap": plain(row.gap)} for row in found]
        for name, found in results.items()
    }
    file.write_text(json.dumps({**head, "backbones": rows}, indent=1, allow_nan=False) + "\n", encoding="utf-8")
