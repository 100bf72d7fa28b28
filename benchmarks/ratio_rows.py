"""Rows of the table of ``ratios.py``, and how two ways are timed in turn."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Row:
    """One line of the table: what, the value and its spread, and the bar it has to reach ("" without one)."""

    name: str
    value: str
    bar: str = ""
    passed: bool = True


def timed(run: Callable[[], Any]) -> float:
    """Seconds of CPU time, which on one thread is what an idle machine would take."""
    started = time.process_time()
    run()
    return time.process_time() - started


def ratio(
    name: str,
    ours: Callable[[], Any],
    other: Callable[[], Any],
    before: Callable[[], None],
    bar: float,
    repetitions: int,
) -> Row:
    """Time ``other`` / ``ours``, run in turn; ``before`` is called before each and not timed."""
    pairs = []
    for i in range(repetitions):
        seconds = {}
        for which in (ours, other) if i % 2 else (other, ours):
            before()
            seconds[which is ours] = timed(which)
        pairs.append((seconds[True], seconds[False]))
    ratios = sorted(b / a for a, b in pairs)
    median = statistics.median(ratios)
    mine, plain = (1000 * statistics.median(column) for column in zip(*pairs, strict=True))
    value = f"{median:.2f}x ({ratios[0]:.2f} to {ratios[-1]:.2f}); {plain:.0f} ms / {mine:.0f} ms"
    return Row(name, value, f">= {bar}x" if bar else "", median >= bar)


def table(rows: Sequence[Row]) -> str:
    """Markdown."""
    lines = ["| what | median (spread) | bar | |", "|---|---|---|---|"]
    lines += [
        f"| {r.name} | {r.value} | {r.bar} | {('pass' if r.passed else 'MISSED') if r.bar else ''} |" for r in rows
    ]
    return "\n".join(lines)
