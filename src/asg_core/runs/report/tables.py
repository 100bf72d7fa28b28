"""The report's tables: before and after, every metric over the run, alarms, changed settings."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any, Literal

from asg_core.config.schema import RunConfig
from asg_core.runs.report.data import Record, RunData, number

_NOT_MEASURED = {"step", "kind", "alarms"}


@dataclass(frozen=True)
class Scale:
    """Linear map of differences to [0, 100] per cent of a track that shows every interval and zero."""

    low: float
    high: float

    def at(self, value: object) -> float | None:
        """Position of ``value`` in per cent, None if it is missing."""
        found = number(value)
        return None if found is None else round(100 * (found - self.low) / (self.high - self.low), 2)


def difference_scale(rows: list[Record]) -> Scale:
    """One scale for the differences of all rows, symmetric around zero, at least +-5 points wide."""
    values = [number(row.get(key)) for row in rows for key in ("difference", "ci_low", "ci_high")]
    reach = max([0.05, *(abs(v) for v in values if v is not None)]) * 1.05
    return Scale(-reach, reach)


def verdict(row: Record) -> Literal["gain", "loss", "unclear", "unknown"]:
    """What the confidence interval of a row says about the sign of its difference."""
    low, high = number(row.get("ci_low")), number(row.get("ci_high"))
    if low is None or high is None:
        return "unknown"
    return "gain" if low > 0 else "loss" if high < 0 else "unclear"


def by_section(rows: list[Record]) -> list[tuple[str, Record | None, list[Record]]]:
    """(section, its "all" row if there is one, its category rows) in the order of first appearance."""
    sections = dict.fromkeys(str(row.get("section")) for row in rows)
    grouped = []
    for section in sections:
        members = [row for row in rows if str(row.get("section")) == section]
        whole = next((row for row in members if row.get("category") == "all"), None)
        grouped.append((section, whole, [row for row in members if row is not whole]))
    return grouped


@dataclass(frozen=True)
class MetricSummary:
    """One metric over the steps that have it: how many, mean of the first and last fifth of them, and its range."""

    key: str
    steps: int
    early: float
    late: float
    low: float
    high: float


def early_and_late(values: list[float]) -> tuple[float, float]:
    """Means of the first and of the last fifth of ``values``, of one value at least; ``values`` is not empty."""
    fifth = max(1, len(values) // 5)
    return sum(values[:fifth]) / fifth, sum(values[-fifth:]) / fifth


def metric_summaries(metrics: list[Record]) -> list[MetricSummary]:
    """Every numeric metric that has at least one value, in the order of first appearance."""
    values: dict[str, list[float]] = {}
    for record in metrics:
        for key, value in record.items():
            found = number(value)
            if key not in _NOT_MEASURED and found is not None:
                values.setdefault(key, []).append(found)
    summaries = []
    for key, series in values.items():
        summaries.append(MetricSummary(key, len(series), *early_and_late(series), min(series), max(series)))
    return summaries


@dataclass(frozen=True)
class AlarmSummary:
    """One collapse alarm: on how many steps it rang, and the first and last of them."""

    name: str
    count: int
    first: int
    last: int


def alarm_summaries(metrics: list[Record]) -> list[AlarmSummary]:
    """Alarms by first ring."""
    rings: dict[str, list[int]] = {}
    for record in metrics:
        for name in record.get("alarms") or []:
            rings.setdefault(str(name), []).append(int(record["step"]))
    return [AlarmSummary(name, len(steps), min(steps), max(steps)) for name, steps in rings.items()]


@dataclass(frozen=True)
class Totals:
    """Sums over the run: steps by kind, and counts of what was asked, learned, drawn and dropped."""

    steps: int
    understanding: int
    generation: int
    seconds: float
    sums: dict[str, float]


def totals(metrics: list[Record]) -> Totals:
    """Totals of the recorded steps; a count that no step has is 0."""
    kinds = Counter(str(record.get("kind")) for record in metrics)
    keys = ("images", "questions", "learned_questions", "gate_failures", "unsolvable", "specs", "skipped", "nonfinite")
    sums = {key: sum(number(record.get(key)) or 0.0 for record in metrics) for key in keys}
    seconds = sum(number(record.get("seconds")) or 0.0 for record in metrics)
    return Totals(len(metrics), kinds["understanding"], kinds["generation"], seconds, sums)


def changed_settings(run: RunData) -> list[tuple[str, Any, Any]]:
    """(dotted key, value, default of asg_core) of every setting in config.yaml that differs from the default."""
    defaults = _flat(RunConfig().model_dump(mode="json"))
    changed = []
    for key, value in _flat(run.config).items():
        default = defaults.get(key)
        if value != default and not (value in ([], {}) and not default):
            changed.append((key, value, default))
    return changed


def _flat(tree: Record, prefix: str = "") -> Record:
    flat: Record = {}
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
