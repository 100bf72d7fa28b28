"""The report's tables: before and after, every metric over the run, alarms, changed settings."""

from __future__ import annotations

from typing import Any, Literal

from asg_core.config.schema import RunConfig
from asg_core.config.validation import flat
from asg_core.runs.folder import Record, number

_NOT_MEASURED = {"step", "kind", "alarms"}


def reach(rows: list[Record]) -> float:
    """Where the scale of differences ends on either side of 0: it shows every interval, and 5 points at least."""
    values = [number(row.get(key)) for row in rows for key in ("difference", "ci_low", "ci_high")]
    return max([0.05, *(abs(v) for v in values if v is not None)]) * 1.05


def verdict(row: Record) -> Literal["gain", "loss", "unclear", "unknown"]:
    """What the confidence interval of a row says about the sign of its difference."""
    low, high = number(row.get("ci_low")), number(row.get("ci_high"))
    if low is None or high is None:
        return "unknown"
    return "gain" if low > 0 else "loss" if high < 0 else "unclear"


def early_and_late(values: list[float]) -> tuple[float, float]:
    """Means of the first and of the last fifth of ``values``, of one value at least; ``values`` is not empty."""
    fifth = max(1, len(values) // 5)
    return sum(values[:fifth]) / fifth, sum(values[-fifth:]) / fifth


def metric_values(metrics: list[Record]) -> dict[str, list[float]]:
    """Every numeric metric that has at least one value, in the order of first appearance, on the steps that have it."""
    values: dict[str, list[float]] = {}
    for record in metrics:
        for key, value in record.items():
            found = number(value)
            if key not in _NOT_MEASURED and found is not None:
                values.setdefault(key, []).append(found)
    return values


def alarm_steps(metrics: list[Record]) -> dict[str, list[int]]:
    """The steps on which each collapse alarm rang; alarms by first ring."""
    rings: dict[str, list[int]] = {}
    for record in metrics:
        for name in record.get("alarms") or []:
            rings.setdefault(str(name), []).append(int(record["step"]))
    return rings


def changed_settings(config: Record, usual: RunConfig | None = None) -> list[tuple[str, Any, Any]]:
    """(dotted key, value, usual value) of every setting in ``config`` that is not; None: asg_core's default."""
    values = flat((usual or RunConfig()).model_dump(mode="json"))
    return [(key, value, values.get(key)) for key, value in flat(config).items() if value != values.get(key)]
