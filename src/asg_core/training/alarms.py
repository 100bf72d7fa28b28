"""Alarms that tell when self-evolution collapses (docs/alarms.md)."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from asg_core.config.schema import Alarms


class CollapseMonitor:
    """Looks back over the last steps of each kind and names what is going wrong.

    Each alarm (docs/alarms.md) is judged on the mean of its metric over a full window of ``limits.window`` steps, so
    one odd step rings nothing.
    """

    def __init__(self, limits: Alarms) -> None:
        self.limits = limits
        self._history: dict[str, deque[float]] = {}
        self._rang = False

    def observe(self, metrics: Mapping[str, Any]) -> list[str]:
        """Take in one step's metrics; the names of the alarms that ring now, sorted."""
        limits = self.limits
        above = {f"no-signal-{metrics['kind']}": (metrics["zero_variance_share"], limits.max_zero_variance)}
        below = {}
        if metrics["kind"] == "understanding":
            failed = metrics["gate_failures"] / metrics["questions"] if metrics["questions"] else None
            above |= {
                "no-questions": (failed, limits.max_zero_variance),
                "no-answers": (metrics["non_answer_share"], limits.max_constant_answers),
                "constant-answers": (metrics["constant_answer_share"], limits.max_constant_answers),
                "kl-drift": (_largest(metrics["kl_proposer"], metrics["kl_solver"]), limits.max_kl),
            }
            below = {
                "repeated-questions": (_variety(metrics), limits.min_distinct_questions),
                "entropy-floor": (metrics["ste_raw"], limits.min_entropy),
            }
        names = [name for name, (value, limit) in above.items() if self._average(name, value) > limit]
        names += [name for name, (value, limit) in below.items() if self._average(name, value) < limit]
        self._rang = bool(names)
        return sorted(names)

    def _average(self, name: str, value: float | None) -> float:
        """Mean of the window with ``value``; NaN, which crosses no limit, without a value or before it is full."""
        if value is None:
            return math.nan
        history = self._history.setdefault(name, deque(maxlen=self.limits.window))
        history.append(value)
        return sum(history) / len(history) if len(history) == self.limits.window else math.nan

    def all_clear(self, names: Collection[str]) -> bool:
        """Whether each of these alarms has looked at a full window, and none rang in the last step."""
        return not self._rang and all(len(self._history.get(name, ())) == self.limits.window for name in names)

    def state(self) -> dict[str, list[float]]:
        """The windows, for a checkpoint."""
        return {name: list(values) for name, values in self._history.items()}

    def restore(self, state: Mapping[str, Sequence[float]]) -> None:
        """Set exactly what :meth:`state` returned."""
        self._history = {name: deque(values, maxlen=self.limits.window) for name, values in state.items()}


def _variety(metrics: Mapping[str, Any]) -> float | None:
    """0 when all questions of a step are one and the same, 1 when all differ; None where there are fewer than two."""
    share: float | None = metrics["distinct_question_share"]
    asked: int = metrics["questions"] - metrics["gate_failures"]
    return None if share is None or asked < 2 else (share * asked - 1) / (asked - 1)


def _largest(*values: float | None) -> float | None:
    return max((v for v in values if v is not None), default=None)
