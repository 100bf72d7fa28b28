"""Metrics of a step, and alarms that tell when self-evolution collapses."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from asg_core.backbones.interface import Role
from asg_core.config.schema import Alarms
from asg_core.method.answers import NON_ANSWERS, normalise
from asg_core.method.records import GenerationItem, UnderstandingItem, mean
from asg_core.method.updates import UpdateReport


def understanding_metrics(items: Sequence[UnderstandingItem]) -> dict[str, Any]:
    """Means over one understanding step; keys as documented in docs/run_folder.md, None where nothing exists."""
    questions = [q for item in items for q in item.questions]
    asked = [q for q in questions if q.text is not None]
    votes = [q.vote for q in asked if q.vote is not None]
    labels = Counter(a.label for q in asked for a in q.answers)
    # "red" to every question has more labels than one, because where a number is asked for its label is "other"
    texts = Counter(normalise(a.sample.text) for q in asked for a in q.answers)
    return {
        "questions": len(questions),
        "gate_failures": sum(q.gate is not None for q in questions),
        "unsolvable": sum(q.scored is not None and q.scored.reason == "unsolvable" for q in asked),
        "learned_questions": sum(q.learned for q in asked),
        "reward_proposer": mean(q.reward for q in questions),
        "reward_solver": mean(a.reward for q in asked for a in q.answers),
        "h_sc": mean(v.entropy for v in votes),
        "majority_share": mean(v.majority_share for v in votes),
        "ste_raw": mean(q.ste for q in asked),
        "ste_percentile": mean(q.ste_percentile for q in asked),
        "distinct_question_share": len({q.text for q in asked}) / len(asked) if asked else None,
        "non_answer_share": sum(labels[label] for label in NON_ANSWERS) / labels.total() if labels else None,
        "constant_answer_share": max(*labels.values(), *texts.values()) / labels.total() if labels else None,
    }


def generation_metrics(items: Sequence[GenerationItem]) -> dict[str, Any]:
    """Means over one generation step; keys as documented in docs/run_folder.md, None where nothing exists."""
    drawn = [item for item in items if item.candidates]
    candidates = [c for item in drawn for c in item.candidates]
    return {
        "specs": len(drawn),
        "skipped": len(items) - len(drawn),
        "spec_quality": mean(item.quality for item in drawn),
        "reward_generator": mean(c.reward for c in candidates),
        "s_fid": mean(c.fidelity for c in candidates),
        "s_cyc": mean(c.cycle for c in candidates),
        "s_div": mean(c.diversity for c in candidates),
        "s_ctr": mean(c.contradiction for c in candidates),
    }


def update_metrics(role: Role, report: UpdateReport, **extra: float | None) -> dict[str, Any]:
    """Loss, gradient norm, drift and ``extra`` of one role's update, suffixed with the role's name; None if not
    finite."""
    drift = {f"replay_{name}": getattr(report.drift, name, None) for name in ("kl", "log_ratio", "beyond_clip")}
    values = {"loss": report.step.loss, "grad_norm": report.step.grad_norm, **drift, **extra}
    return {f"{key}_{role.value}": mean([value]) for key, value in values.items()}


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
        rings = []
        if metrics["kind"] == "understanding":
            failed = metrics["gate_failures"] / metrics["questions"] if metrics["questions"] else None
            rings = [
                self._above("no-questions", failed, limits.max_zero_variance),
                self._below("repeated-questions", _variety(metrics), limits.min_distinct_questions),
                self._above("no-answers", metrics["non_answer_share"], limits.max_constant_answers),
                self._above("constant-answers", metrics["constant_answer_share"], limits.max_constant_answers),
                self._above("kl-drift", _largest(metrics["kl_proposer"], metrics["kl_solver"]), limits.max_kl),
                self._below("entropy-floor", metrics["ste_raw"], limits.min_entropy),
            ]
        silent = self._above(f"no-signal-{metrics['kind']}", metrics["zero_variance_share"], limits.max_zero_variance)
        names = sorted(name for name in [*rings, silent] if name is not None)
        self._rang = bool(names)
        return names

    def _above(self, name: str, value: float | None, limit: float) -> str | None:
        average = self._average(name, value)
        return name if average is not None and average > limit else None

    def _below(self, name: str, value: float | None, limit: float) -> str | None:
        average = self._average(name, value)
        return name if average is not None and average < limit else None

    def _average(self, name: str, value: float | None) -> float | None:
        if value is None:
            return None
        history = self._history.setdefault(name, deque(maxlen=self.limits.window))
        history.append(value)
        return sum(history) / len(history) if len(history) == self.limits.window else None

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
