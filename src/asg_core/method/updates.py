"""The update of the text roles (METHOD, Policy update).

L = sum_t [ -min(A rho_t, A clip(rho_t, 1-e, 1+e)) + beta KL_t ] / #tokens,   rho_t = exp(logp_new - logp_old)

logp_old is what the first inner step computes, whose weights are those that sampled: rho is 1 there, exactly, and later
inner steps keep it. The log-probs stored while sampling differ from it by rounding, and only check it (``replay``).
Groups without signal (all rewards equal) are left out altogether, so that they change nothing, exactly.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from asg_core.backbones.devices import tensor_on
from asg_core.backbones.interface import Backbone, Role, TextSample
from asg_core.config.schema import RunConfig
from asg_core.method.policy import AdaptiveKl, clipped_policy_terms, k3
from asg_core.method.records import UnderstandingItem
from asg_core.method.replay import Drift, NoiseFloor, Replay
from asg_core.training.optimizer import RoleOptimizer, StepResult

T = TypeVar("T")

_REMEASURED, _COPIES = 2, 5
"""Samples, and copies of each, in the batch that measures the floor of rounding: so few that even a CPU's matrix
products round otherwise than in a whole batch, so often that shared decoding reads a prompt apart from its completions,
as sampling does."""


@dataclass(frozen=True)
class UpdateReport:
    """What one role's update did: the last optimizer step, the mean KL per token in nats, samples dropped, share of
    groups without signal (None if there was no group), how far replayed log-probs were from the sampled ones (None if
    nothing was sampled token by token)."""

    step: StepResult
    kl: float | None
    dropped: int
    zero_variance_share: float | None
    drift: Drift | None = None


@dataclass(eq=False)
class _Lesson:
    """What a text role learns from; ``old`` holds its log-probs of the first inner step, once there are any."""

    sample: TextSample
    advantage: float
    old: Tensor | None = None


def proposer_groups(items: Sequence[UnderstandingItem]) -> list[list[tuple[TextSample, float]]]:
    """The K completions of each image with their advantages."""
    return [[(q.completion, q.advantage or 0.0) for q in item.questions] for item in items]


def solver_groups(items: Sequence[UnderstandingItem]) -> list[list[tuple[TextSample, float]]]:
    """The N answers of each question the Solver learns from, each under the prompt it was sampled from."""
    return [[(a.sample, a.advantage or 0.0) for a in q.answers] for item in items for q in item.questions if q.learned]


def update_text_role(
    backbone: Backbone,
    role: Role,
    groups: Sequence[Sequence[tuple[TextSample, float]]],
    optimizer: RoleOptimizer,
    beta: AdaptiveKl,
    config: RunConfig,
    whole: Sequence[Sequence[tuple[TextSample, float]]] | None = None,
    at_once: int = 0,
    floor: NoiseFloor | None = None,
) -> UpdateReport:
    """One KL-regularised clipped policy-gradient update; moves ``beta`` from the mean KL afterwards.

    Samples with a non-finite log-prob are dropped and counted. Raises TrainingStopped, before anything moves, when the
    replayed log-probs are not the sampled ones.

    Args:
        groups: what this process learns from, samples with their advantages.
        whole: the groups of all processes, of which ``groups`` are a part and whose tokens the loss is averaged over;
            None if there is one process.
        at_once: groups per backward pass; 0: as configured.
        floor: what rounding does to log-probs, see Replay.
    """
    everywhere = _lessons(groups if whole is None else whole)
    dropped = sum(map(len, groups if whole is None else whole)) - sum(map(len, everywhere))
    informative = [group for group in everywhere if _teaches(group)]
    silent = 1 - len(informative) / len(everywhere) if everywhere else None
    tokens = sum(len(lesson.sample.token_ids) for group in informative for lesson in group)
    if not informative or optimizer.lr == 0:
        return UpdateReport(StepResult(), None, dropped, silent)
    signal = [group for group in _lessons(groups) if _teaches(group)]
    batches = list(batches_of(signal, at_once or config.optimizer.groups_per_pass(len(signal))))
    kls: list[Tensor] = []
    replay = Replay(floor, config.policy.clip)

    def losses(first: bool) -> Iterator[Callable[[], Tensor]]:
        for batch in batches:
            yield lambda batch=batch: _text_loss(backbone, role, batch, beta.beta, tokens, config, kls)  # type: ignore[misc]
        if first and batches:
            _check_text(backbone, role, batches, replay)

    result = StepResult()
    for inner in range(config.policy.inner_steps):
        kls.clear()
        result = optimizer.step(losses(inner == 0), lambda: (*weighted_mean(kls), *replay.sums))
        if result.nonfinite:
            break
    kl = mean_of(result.sums)
    if kl is not None and not result.nonfinite:
        beta.update(kl)
    return UpdateReport(result, kl, dropped, silent, replay.settle(result.sums[2:]))


def _lessons(groups: Sequence[Sequence[tuple[TextSample, float]]]) -> list[list[_Lesson]]:
    return [
        [_Lesson(sample, a) for sample, a in group if all(map(math.isfinite, sample.logprobs)) and math.isfinite(a)]
        for group in groups
    ]


def _teaches(group: Sequence[_Lesson]) -> bool:
    return any(lesson.advantage != 0.0 for lesson in group)


def weighted_mean(values: Sequence[Tensor]) -> tuple[float, float]:
    """Mean times count, and count, of several vectors: sums of these over processes give the mean of all."""
    if not values:
        return 0.0, 0.0
    joined = torch.cat(list(values))
    return float(joined.mean()) * len(joined), float(len(joined))


def mean_of(sums: Sequence[float]) -> float | None:
    """The mean from sums of :func:`weighted_mean`; None where nothing was counted."""
    return sums[0] / sums[1] if sums and sums[1] else None


def _text_loss(
    backbone: Backbone,
    role: Role,
    lessons: Sequence[_Lesson],
    beta: float,
    tokens: int,
    config: RunConfig,
    kls: list[Tensor],
) -> Tensor:
    scores = backbone.token_logits([lesson.sample for lesson in lessons], role, base=True)
    terms, divergences = [], []
    for lesson, score in zip(lessons, scores, strict=True):
        if score.kl is None or score.base_logprobs is None:
            raise TypeError(f"{type(backbone).__name__}.token_logits(base=True) returned no base scores")
        if lesson.old is None:
            lesson.old = score.logprobs.detach()
        old = score.base_logprobs if config.control == "base_ratio" else lesson.old
        terms.append(clipped_policy_terms(score.logprobs, old, lesson.advantage, config.policy.clip))
        divergences.append(score.kl if config.policy.kl == "exact" else k3(score.logprobs, score.base_logprobs))
    divergence = torch.cat(divergences)
    kls.append(divergence.detach())
    return (torch.cat(terms).sum() + beta * divergence.sum()) / tokens


def _check_text(backbone: Backbone, role: Role, batches: Sequence[Sequence[_Lesson]], replay: Replay) -> None:
    lessons = [lesson for batch in batches for lesson in batch]
    scored = _joined(lessons)
    stored = [value for lesson in lessons for value in lesson.sample.logprobs]

    def again() -> tuple[Tensor, Tensor]:
        few = batches[0][:_REMEASURED]
        scores = backbone.token_logits([lesson.sample for lesson in few for _ in range(_COPIES)], role)
        return _joined(few), torch.cat([score.logprobs for score in scores[::_COPIES]])

    replay.check(scored, tensor_on(scored.device, stored, scored.dtype), again, role, backbone.dtype)


def _joined(lessons: Sequence[_Lesson]) -> Tensor:
    return torch.cat([lesson.old for lesson in lessons if lesson.old is not None])


def batches_of(groups: Sequence[Sequence[T]], size: int) -> Iterator[list[T]]:
    """The members of ``size`` groups at a time."""
    for start in range(0, len(groups), max(size, 1)):
        yield [member for group in groups[start : start + size] for member in group]
