"""The numbers of a step, as ``metrics.jsonl`` holds them (docs/run_folder.md)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from asg_core.backbones.interface import Role
from asg_core.method.answers import NON_ANSWERS, normalise
from asg_core.method.records import GenerationItem, UnderstandingItem, mean
from asg_core.method.updates import Learner, UpdateReport


def understanding_metrics(items: Sequence[UnderstandingItem]) -> dict[str, Any]:
    """Return means over one understanding step; keys as documented in docs/run_folder.md, None where nothing exists."""
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
    """Return means over one generation step; keys as documented in docs/run_folder.md, None where nothing exists."""
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
    """Return loss, gradient norm, drift and ``extra`` of one role's update, suffixed with the role's name; None if not
    finite."""
    drift = {f"replay_{name}": getattr(report.drift, name, None) for name in ("kl", "log_ratio", "beyond_clip")}
    values = {"loss": report.step.loss, "grad_norm": report.step.grad_norm, **drift, **extra}
    return {f"{key}_{role.value}": mean([value]) for key, value in values.items()}


def text_update_metrics(reports: Mapping[Role, UpdateReport], learners: Mapping[Role, Learner]) -> dict[str, Any]:
    """Return the metrics of the updates of Proposer and Solver, their KL weights, and what they have in common."""
    metrics: dict[str, Any] = {}
    for role, report in reports.items():
        control = learners[role].kl
        metrics |= update_metrics(role, report, kl=report.kl, beta=control.beta if control else None)
    return metrics | {
        "nonfinite": sum(report.dropped + report.step.nonfinite for report in reports.values()),
        "zero_variance_share": mean(report.zero_variance_share for report in reports.values()),
    }
