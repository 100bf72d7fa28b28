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
from asg_core.method.context import StepContext
from asg_core.method.learner import Learner, StepResult, UpdateReport
from asg_core.method.losses import clipped_policy_terms, k3
from asg_core.method.records import UnderstandingItem
from asg_core.method.replay import Replay

T = TypeVar("T")

Group = Sequence[tuple[TextSample, float]]
"""Samples that were compared with each other, with their advantages."""

_REMEASURED, _COPIES = 2, 5
"""Samples, and copies of each, in the batch that measures the floor of rounding: so few that even a CPU's matrix
products round otherwise than in a whole batch, so often that shared decoding reads a prompt apart from its completions,
as sampling does."""


@dataclass(frozen=True)
class Groups:
    """What a text role learns from.

    Attributes:
        own: groups of this process.
        everywhere: groups of all processes, whose tokens the loss is averaged over.
    """

    own: Sequence[Group]
    everywhere: Sequence[Group]


def proposer_groups(items: Sequence[UnderstandingItem]) -> Groups:
    """Return the K completions of each image with their advantages."""
    return Groups(*([_completions(item) for item in chosen] for chosen in (_mine(items), items)))


def solver_groups(items: Sequence[UnderstandingItem]) -> Groups:
    """Return the N answers of each question the Solver learns from, each under the prompt it was sampled from."""
    return Groups(*([group for item in chosen for group in _answers(item)] for chosen in (_mine(items), items)))


def _mine(items: Sequence[UnderstandingItem]) -> list[UnderstandingItem]:
    return [item for item in items if item.mine]


def _completions(item: UnderstandingItem) -> Group:
    return [(q.completion, q.advantage or 0.0) for q in item.questions]


def _answers(item: UnderstandingItem) -> list[Group]:
    return [[(a.sample, a.advantage or 0.0) for a in q.answers] for q in item.questions if q.learned]


@dataclass(eq=False)
class _Lesson:
    """What a text role learns from; ``old`` holds its log-probs of the first inner step, once there are any."""

    sample: TextSample
    advantage: float
    old: Tensor | None = None


def update_text_role(model: Backbone, groups: Groups, learner: Learner, ctx: StepContext) -> UpdateReport:
    """Take one KL-regularised clipped policy-gradient update; steer the KL weight by the mean KL afterwards.

    Samples with a non-finite log-prob are dropped and counted.

    Args:
        model: scores the samples.
        groups: samples with their advantages.
        learner: the Proposer or the Solver.
        ctx: of the step.

    Raises:
        TrainingStopped: the replayed log-probs are not the sampled ones; nothing has moved.
    """
    everywhere = _lessons(groups.everywhere)
    dropped = sum(map(len, groups.everywhere)) - sum(map(len, everywhere))
    informative = [group for group in everywhere if _teaches(group)]
    silent = 1 - len(informative) / len(everywhere) if everywhere else None
    if not informative or learner.optimizer.lr == 0:
        return UpdateReport(StepResult(), None, dropped, silent)
    config, signal = ctx.config, [group for group in _lessons(groups.own) if _teaches(group)]
    batches = list(batches_of(signal, ctx.groups_at_once or config.optimizer.groups_per_pass(len(signal))))
    loss = _TextLoss(
        model, learner, ctx, sum(len(lesson.sample.token_ids) for group in informative for lesson in group)
    )
    replay = Replay(learner.floor, config.policy.clip)

    def losses(first: bool) -> Iterator[Callable[[], Tensor]]:
        for batch in batches:
            yield lambda batch=batch: loss(batch)  # type: ignore[misc]
        if first and batches:
            _check_text(model, learner.role, batches, replay)

    result = StepResult()
    for inner in range(config.policy.inner_steps):
        loss.kls.clear()
        result = learner.optimizer.step(losses(inner == 0), lambda: (*weighted_mean(loss.kls), *replay.sums))
        if result.nonfinite:
            break
    kl = mean_of(result.sums)
    if kl is not None and not result.nonfinite:
        loss.weight.update(kl)
    return UpdateReport(result, kl, dropped, silent, replay.settle(result.sums[2:]))


def _lessons(groups: Sequence[Group]) -> list[list[_Lesson]]:
    return [
        [_Lesson(sample, a) for sample, a in group if all(map(math.isfinite, sample.logprobs)) and math.isfinite(a)]
        for group in groups
    ]


def _teaches(group: Sequence[_Lesson]) -> bool:
    return any(lesson.advantage != 0.0 for lesson in group)


def weighted_mean(values: Sequence[Tensor]) -> tuple[float, float]:
    """Return mean times count, and count, of several vectors: sums of these over processes give the mean of all."""
    if not values:
        return 0.0, 0.0
    joined = torch.cat(list(values))
    return float(joined.mean()) * len(joined), float(len(joined))


def mean_of(sums: Sequence[float]) -> float | None:
    """Return the mean from sums of :func:`weighted_mean`; None where nothing was counted."""
    return sums[0] / sums[1] if sums and sums[1] else None


class _TextLoss:
    """The loss of some lessons of an update; ``kls`` collects the divergences per token of those computed so far."""

    def __init__(self, model: Backbone, learner: Learner, ctx: StepContext, tokens: int) -> None:
        if learner.kl is None:
            raise TypeError(f"the {learner.role.value} has no KL weight")
        self.weight, self.kls = learner.kl, list[Tensor]()
        self._model, self._role, self._ctx, self._tokens = model, learner.role, ctx, tokens

    def __call__(self, lessons: Sequence[_Lesson]) -> Tensor:
        policy, variant = self._ctx.config.policy, self._ctx.variant
        scores = self._model.token_logits([lesson.sample for lesson in lessons], self._role, base=True)
        terms, divergences = [], []
        for lesson, score in zip(lessons, scores, strict=True):
            if score.kl is None or score.base_logprobs is None:
                raise TypeError(f"{type(self._model).__name__}.token_logits(base=True) returned no base scores")
            if lesson.old is None:
                lesson.old = score.logprobs.detach()
            old = variant.old_logprobs(lesson.old, score.base_logprobs)
            terms.append(clipped_policy_terms(score.logprobs, old, lesson.advantage, policy.clip))
            divergences.append(score.kl if policy.kl == "exact" else k3(score.logprobs, score.base_logprobs))
        divergence = torch.cat(divergences)
        self.kls.append(divergence.detach())
        return (torch.cat(terms).sum() + self.weight.beta * divergence.sum()) / self._tokens


def _check_text(model: Backbone, role: Role, batches: Sequence[Sequence[_Lesson]], replay: Replay) -> None:
    lessons = [lesson for batch in batches for lesson in batch]
    scored = _joined(lessons)
    stored = [value for lesson in lessons for value in lesson.sample.logprobs]

    def again() -> tuple[Tensor, Tensor]:
        few = batches[0][:_REMEASURED]
        scores = model.token_logits([lesson.sample for lesson in few for _ in range(_COPIES)], role)
        return _joined(few), torch.cat([score.logprobs for score in scores[::_COPIES]])

    replay.check(scored, tensor_on(scored.device, stored, scored.dtype), again, role, model.dtype)


def _joined(lessons: Sequence[_Lesson]) -> Tensor:
    return torch.cat([lesson.old for lesson in lessons if lesson.old is not None])


def batches_of(groups: Sequence[Sequence[T]], size: int) -> Iterator[list[T]]:
    """Yield the members of ``size`` groups at a time."""
    for start in range(0, len(groups), max(size, 1)):
        yield [member for group in groups[start : start + size] for member in group]
