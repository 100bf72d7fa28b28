"""The update of a role (METHOD, Policy update): what all roles share, and the loss of Proposer and Solver.

L = sum_t [ -min(A rho_t, A clip(rho_t, 1-e, 1+e)) + beta KL_t ] / #tokens,   rho_t = exp(logp_new - logp_old)

logp_old is what the first inner step computes, whose weights are those that sampled: rho is 1 there, exactly, and later
inner steps keep it. The log-probs stored while sampling differ from it by rounding, and only check it (``replay``).
Groups without signal (all rewards equal) are left out altogether, so that they change nothing, exactly.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor

from asg_core.backbones.devices import moved_to
from asg_core.backbones.interface import Backbone, Role, TextSample
from asg_core.method.context import StepContext
from asg_core.method.losses import AdaptiveKl, clipped_policy_terms, k3
from asg_core.method.records import UnderstandingItem
from asg_core.method.replay import Drift, NoiseFloor, drift_sums


@dataclass(frozen=True)
class StepResult:
    """What one optimizer step did.

    Attributes:
        loss: sum of the backward-passed losses, over all processes; None when nothing was to be done.
        grad_norm: gradient norm before clipping, None when no step was taken.
        applied: whether the weights moved.
        nonfinite: whether the step was dropped because a loss, a gradient or a moment was not finite.
        sums: what ``statistics`` returned, summed over all processes.
    """

    loss: float | None = None
    grad_norm: float | None = None
    applied: bool = False
    nonfinite: bool = False
    sums: tuple[float, ...] = ()


class Optimizer(Protocol):
    """Takes guarded steps on the adapter of one role (``training.optimizer``)."""

    lr: float

    def step(
        self, losses: Iterable[Callable[[], Tensor]], statistics: Callable[[], Sequence[float]] = tuple
    ) -> StepResult:
        """Minimise the sum of several losses, each built when its turn comes, by one step.

        Then call ``statistics``, whose numbers are summed over all processes.
        """
        ...


@dataclass(eq=False)
class Learner:
    """One role in training.

    Attributes:
        role: whose adapter learns.
        optimizer: moves it.
        kl: weight of the KL term, steered after every update; None for the Generator, whose penalty has a fixed weight.
        floor: what rounding does to the role's log-probs; by default the least there is.
    """

    role: Role
    optimizer: Optimizer
    kl: AdaptiveKl | None = None
    floor: NoiseFloor = field(default_factory=partial(NoiseFloor, 0.0))


@dataclass(frozen=True)
class UpdateReport:
    """What one role's update did.

    Attributes:
        step: the last optimizer step.
        kl: mean KL per token in nats; of the Generator, the mean penalty. None if nothing was learned.
        dropped: samples left out because a number of theirs was not finite.
        zero_variance_share: share of groups without signal; None if there was no group.
        drift: how far replayed log-probs were from the sampled ones; None if nothing was sampled token by token.
    """

    step: StepResult
    kl: float | None
    dropped: int
    zero_variance_share: float | None
    drift: Drift | None = None


Sample = TypeVar("Sample")

_REMEASURED, _COPIES = 2, 5
"""Samples, and copies of each, in the batch that measures the floor of rounding: so few that even a CPU's matrix
products round otherwise than in a whole batch, so often that shared decoding reads a prompt apart from its completions,
as sampling does."""


@dataclass(frozen=True)
class Group:
    """Samples that were compared with each other, with their advantages; not ``mine`` if another process has them."""

    samples: Sequence[tuple[TextSample, float]]
    mine: bool = True


def proposer_groups(items: Sequence[UnderstandingItem]) -> list[Group]:
    """Return the K completions of each image with their advantages."""
    return [Group([(q.completion, q.advantage or 0.0) for q in item.questions], item.mine) for item in items]


def solver_groups(items: Sequence[UnderstandingItem]) -> list[Group]:
    """Return the N answers of each question the Solver learns from, each under the prompt it was sampled from."""
    return [
        Group([(a.sample, a.advantage or 0.0) for a in q.answers], item.mine)
        for item in items
        for q in item.questions
        if q.learned
    ]


@dataclass(eq=False)
class Lesson(Generic[Sample]):
    """A sample and its advantage or weight.

    Attributes:
        stored: (T,) nats on the CPU, as sampled; None where nothing was sampled token by token.
        old: (T,) nats of the first inner step, once there are any.
    """

    sample: Sample
    signal: float
    stored: Tensor | None
    old: Tensor | None = field(default=None, kw_only=True)

    def first(self, logprobs: Tensor) -> Tensor:
        """Return ``old``, which becomes ``logprobs`` if there is none yet."""
        if self.old is None:
            self.old = logprobs.detach()
        return self.old


AnyLesson = TypeVar("AnyLesson", bound=Lesson[Any])


class Update(ABC, Generic[AnyLesson]):
    """The inner steps of one role over the same lessons, which the first checks before it moves anything (``replay``).

    Attributes:
        count: of what the loss is a mean over, in all processes: tokens, or prompts.
        divergences: from the base, of the lessons scored so far in this inner step.
        replayed: sums that compare the first inner step with what was sampled.
    """

    def __init__(self, model: Backbone, learner: Learner, ctx: StepContext, count: int) -> None:
        self.model, self.learner, self.ctx, self.count = model, learner, ctx, count
        self.divergences: list[Tensor] = []
        self.replayed: tuple[float, ...] = (0.0,) * 6

    @abstractmethod
    def loss(self, lessons: Sequence[AnyLesson]) -> Tensor:
        """Return what some lessons add to the loss; note their divergences."""

    @abstractmethod
    def again(self, batch: Sequence[AnyLesson]) -> tuple[Tensor, Tensor]:
        """Return log-probs of a few tokens as they were scored in ``batch``, and as they are scored in another one."""

    def take(self, groups: Sequence[Sequence[AnyLesson]], steps: int, report: UpdateReport) -> UpdateReport:
        """Take inner steps and steer the KL weight; ``report`` with the last one's result and the first one's drift."""
        size = self.ctx.groups_at_once or self.ctx.config.optimizer.groups_per_pass(len(groups))
        batches = [list(chain(*groups[start : start + size])) for start in range(0, len(groups), max(size, 1))]
        result = StepResult()
        for inner in range(steps):
            self.divergences.clear()
            result = self.learner.optimizer.step(self._losses(batches, check=inner == 0), self._sums)
            if result.nonfinite:
                break
        total, count, *replayed = result.sums
        divergence = total / count if count else None
        if self.learner.kl is not None and divergence is not None and not result.nonfinite:
            self.learner.kl.update(divergence)
        return replace(report, step=result, kl=divergence, drift=self.learner.floor.settle(replayed))

    def _losses(self, batches: Sequence[Sequence[AnyLesson]], *, check: bool) -> Iterator[Callable[[], Tensor]]:
        for batch in batches:
            yield partial(self.loss, batch)
        scored = [lesson for lesson in chain(*batches) if lesson.old is not None]
        if check and scored:
            old = joined(scored)
            stored = torch.cat([lesson.stored for lesson in scored if lesson.stored is not None])
            floor, clip = self.learner.floor, self.ctx.config.policy.clip
            with torch.no_grad():
                again = self.again(batches[0]) if floor.nats is None else (old[:0], old[:0])
            self.replayed = drift_sums(old, moved_to(old.device, stored, old.dtype), again, clip)
            floor.judge(self.replayed, self.learner.role, self.model.dtype)

    def _sums(self) -> tuple[float, ...]:
        count = sum(map(len, self.divergences))
        total = float(torch.cat(self.divergences).mean()) * count if count else 0.0
        return total, count, *self.replayed


def joined(lessons: Sequence[Lesson[Any]]) -> Tensor:
    """Return the log-probs of the first inner step of all tokens that have some."""
    return torch.cat([lesson.old for lesson in lessons if lesson.old is not None])


def update_text_role(model: Backbone, groups: Sequence[Group], learner: Learner, ctx: StepContext) -> UpdateReport:
    """Take one KL-regularised clipped policy-gradient update; steer the KL weight by the mean KL afterwards.

    Samples with a non-finite log-prob are dropped and counted.

    Args:
        groups: of all processes, whose tokens the loss is averaged over; this one learns from its own.
        learner: the Proposer or the Solver.

    Raises:
        TrainingStopped: the replayed log-probs are not the sampled ones; nothing has moved.
    """
    lessons = [(_lessons(group), group.mine) for group in groups]
    dropped = sum(len(group.samples) for group in groups) - sum(len(kept) for kept, _ in lessons)
    teaching = [(kept, mine) for kept, mine in lessons if any(lesson.signal for lesson in kept)]
    silent = 1 - len(teaching) / len(lessons) if lessons else None
    report = UpdateReport(StepResult(), None, dropped, silent)
    if not teaching or learner.optimizer.lr == 0:
        return report
    tokens = sum(len(lesson.sample.token_ids) for kept, _ in teaching for lesson in kept)
    update = _TextUpdate(model, learner, ctx, tokens)
    return update.take([kept for kept, mine in teaching if mine], ctx.config.policy.inner_steps, report)


def _lessons(group: Group) -> list[Lesson[TextSample]]:
    return [
        Lesson(sample, advantage, torch.tensor(sample.logprobs))
        for sample, advantage in group.samples
        if all(map(math.isfinite, (*sample.logprobs, advantage)))
    ]


class _TextUpdate(Update[Lesson[TextSample]]):
    def loss(self, lessons: Sequence[Lesson[TextSample]]) -> Tensor:
        policy = self.ctx.config.policy
        beta = self.learner.kl.beta if self.learner.kl else 0.0
        scores = self.model.token_logits([lesson.sample for lesson in lessons], self.learner.role, base=True)
        terms, divergences = [], []
        for lesson, score in zip(lessons, scores, strict=True):
            if score.kl is None or score.base_logprobs is None:
                raise TypeError(f"{type(self.model).__name__}.token_logits(base=True) returned no base scores")
            old = self.ctx.variant.old_logprobs(lesson.first(score.logprobs), score.base_logprobs)
            terms.append(clipped_policy_terms(score.logprobs, old, lesson.signal, policy.clip))
            divergences.append(score.kl if policy.kl == "exact" else k3(score.logprobs, score.base_logprobs))
        divergence = torch.cat(divergences)
        self.divergences.append(divergence.detach())
        return (torch.cat(terms).sum() + beta * divergence.sum()) / self.count

    def again(self, batch: Sequence[Lesson[TextSample]]) -> tuple[Tensor, Tensor]:
        few = batch[:_REMEASURED]
        copies = [lesson.sample for lesson in few for _ in range(_COPIES)]
        scores = self.model.token_logits(copies, self.learner.role)
        return joined(few), torch.cat([score.logprobs for score in scores[::_COPIES]])
