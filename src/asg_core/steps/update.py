"""The updates of the three roles (METHOD, Policy update and Generation step 4).

Text roles:  L = sum_t [ -min(A rho_t, A clip(rho_t, 1-e, 1+e)) + beta KL_t ] / #tokens
             rho_t = exp(logp_new - logp_sampled)
Generator:   flow    L = sum_l w_l loss_l + beta_g mean penalty,   w = softmax(R / tau)
             tokens  the clipped loss on the stored image tokens, plus beta_g penalty

Groups without signal (all rewards equal) are left out altogether, so that they change nothing, exactly.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from asg_core.config import RunConfig
from asg_core.devices import tensor_on
from asg_core.errors import TrainingStopped
from asg_core.optimiser import RoleOptimiser, StepResult
from asg_core.policy import AdaptiveKl, clipped_policy_terms, k3
from asg_core.roles import Backbone, ImageSample, Role, TextSample
from asg_core.seeds import derive_seed
from asg_core.steps.control import lessons
from asg_core.steps.generation import uses_regression
from asg_core.steps.records import GenerationItem, UnderstandingItem

T = TypeVar("T")

REPLAY_TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-6, torch.bfloat16: 0.1, torch.float16: 0.05}
"""Largest mean |log rho| at the first inner step, by dtype of the base; more means sampling and scoring disagree."""


@dataclass(frozen=True)
class UpdateReport:
    """What one role's update did: the last optimiser step, the mean KL per token in nats, samples dropped, share of
    groups without signal (None if there was no group)."""

    step: StepResult
    kl: float | None
    dropped: int
    zero_variance_share: float | None


@dataclass(frozen=True)
class _Lesson:
    sample: TextSample
    advantage: float


@dataclass(frozen=True)
class _Drawing:
    """What the Generator learns from: a drawing, its weight or advantage, the place of its item among the step's, and
    its share of the prompt's mean penalty."""

    sample: ImageSample
    signal: float
    item: int
    share: float


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
    optimiser: RoleOptimiser,
    beta: AdaptiveKl,
    config: RunConfig,
    whole: Sequence[Sequence[tuple[TextSample, float]]] | None = None,
    at_once: int = 0,
) -> UpdateReport:
    """One KL-regularised clipped policy-gradient update; moves ``beta`` from the mean KL afterwards.

    Samples with a non-finite log-prob are dropped and counted. Raises TrainingStopped when the replayed log-probs are
    not the sampled ones, which would make every ratio wrong.

    Args:
        groups: what this process learns from, samples with their advantages.
        whole: the groups of all processes, of which ``groups`` are a part and whose tokens the loss is averaged over;
            None if there is one process.
        at_once: groups per backward pass; 0: as configured.
    """
    everywhere = _lessons(groups if whole is None else whole)
    dropped = sum(map(len, groups if whole is None else whole)) - sum(map(len, everywhere))
    informative = [group for group in everywhere if _teaches(group)]
    silent = 1 - len(informative) / len(everywhere) if everywhere else None
    tokens = sum(len(lesson.sample.token_ids) for group in informative for lesson in group)
    if not informative or optimiser.lr == 0:
        return UpdateReport(StepResult(), None, dropped, silent)
    signal = [group for group in _lessons(groups) if _teaches(group)]
    kls: list[Tensor] = []

    def losses(first: bool) -> Iterator[Callable[[], Tensor]]:
        for batch in _batches(signal, at_once or config.optimiser.groups_per_pass(len(signal))):
            yield lambda batch=batch: _text_loss(  # type: ignore[misc]
                backbone, role, batch, beta.beta, tokens, config, kls, first
            )

    result = StepResult()
    for inner in range(config.policy.inner_steps):
        kls.clear()
        result = optimiser.step(losses(inner == 0), lambda: _weighted_mean(kls))
        if result.nonfinite:
            break
    kl = _mean_of(result.sums)
    if kl is not None and not result.nonfinite:
        beta.update(kl)
    return UpdateReport(result, kl, dropped, silent)


def _lessons(groups: Sequence[Sequence[tuple[TextSample, float]]]) -> list[list[_Lesson]]:
    return [
        [_Lesson(sample, a) for sample, a in group if all(map(math.isfinite, sample.logprobs)) and math.isfinite(a)]
        for group in groups
    ]


def _teaches(group: Sequence[_Lesson]) -> bool:
    return any(lesson.advantage != 0.0 for lesson in group)


def _weighted_mean(values: Sequence[Tensor]) -> tuple[float, float]:
    """Mean times count, and count, of several vectors: sums of these over processes give the mean of all."""
    if not values:
        return 0.0, 0.0
    joined = torch.cat(list(values))
    return float(joined.mean()) * len(joined), float(len(joined))


def _mean_of(sums: Sequence[float]) -> float | None:
    return sums[0] / sums[1] if sums and sums[1] else None


def _text_loss(
    backbone: Backbone,
    role: Role,
    lessons: Sequence[_Lesson],
    beta: float,
    tokens: int,
    config: RunConfig,
    kls: list[Tensor],
    first: bool,
) -> Tensor:
    scores = backbone.token_logits([lesson.sample for lesson in lessons], role, base=True)
    terms, divergences, drift = [], [], []
    for lesson, score in zip(lessons, scores, strict=True):
        if score.kl is None or score.base_logprobs is None:
            raise TypeError(f"{type(backbone).__name__}.token_logits(base=True) returned no base scores")
        old = tensor_on(score.logprobs.device, lesson.sample.logprobs, score.logprobs.dtype)
        drift.append((score.logprobs.detach() - old).abs())
        if config.control == "base_ratio":
            old = score.base_logprobs
        terms.append(clipped_policy_terms(score.logprobs, old, lesson.advantage, config.policy.clip))
        divergences.append(score.kl if config.policy.kl == "exact" else k3(score.logprobs, score.base_logprobs))
    if first:
        _assert_replay(float(torch.cat(drift).mean()), next(iter(backbone.trainable(role))), backbone)
    divergence = torch.cat(divergences)
    kls.append(divergence.detach())
    return (torch.cat(terms).sum() + beta * divergence.sum()) / tokens


def _assert_replay(drift: float, name: str, backbone: Backbone) -> None:
    tolerance = REPLAY_TOLERANCE[backbone.dtype]
    if drift > tolerance:
        raise TrainingStopped(
            f"replayed log-probs differ from the sampled ones by {drift:.3g} nats per token (adapter of {name})",
            "the backbone scores samples under another prompt, image, position or adapter than it sampled them from",
            "run the backbone's conformance checks; the invariant is 'sampling and scoring agree' in docs/paper_map.md",
        )


def _batches(groups: Sequence[Sequence[T]], size: int) -> Iterator[list[T]]:
    """The members of ``size`` groups at a time."""
    for start in range(0, len(groups), max(size, 1)):
        yield [member for group in groups[start : start + size] for member in group]


def update_generator(
    backbone: Backbone,
    items: Sequence[GenerationItem],
    optimiser: RoleOptimiser,
    config: RunConfig,
    step: int,
    at_once: int = 0,
) -> UpdateReport:
    """One update of the Generator on its own candidates, never on the source image.

    Regression needs no sampling log-probs; policy gradient needs ``ImageSample.token_logprobs``. Timestep and noise are
    shared by the candidates of one prompt. ``UpdateReport.kl`` is the mean penalty.

    Args:
        items: the whole step's; this process learns from those that are its own.
        at_once: candidates per backward pass, also fewer than a prompt has; 0: as configured.
    """
    drawn = [item for item in items if item.candidates]
    signal = [item for item in drawn if any(c.signal for c in item.candidates)]
    silent = 1 - len(signal) / len(drawn) if drawn else None
    dropped = sum(c.signal is None for item in drawn for c in item.candidates)
    if not signal or optimiser.lr == 0:
        return UpdateReport(StepResult(), None, dropped, silent)
    penalties: list[Tensor] = []
    groups = []
    for i, item in enumerate(items):
        if item.mine and any(c.signal for c in item.candidates):
            taught = lessons(backbone, item, config.control)
            groups.append([_Drawing(sample, weight, i, 1.0 / len(taught)) for sample, weight in taught])
    if at_once:
        groups = [[drawing] for group in groups for drawing in group]

    def losses() -> Iterator[Callable[[], Tensor]]:
        for batch in _batches(groups, at_once or config.optimiser.groups_per_pass(len(groups))):
            yield lambda batch=batch: _generator_loss(backbone, batch, len(signal), config, step, penalties)  # type: ignore[misc]

    result = optimiser.step(losses(), lambda: _weighted_mean(penalties))
    return UpdateReport(result, _mean_of(result.sums), dropped, silent)


def _generator_loss(
    backbone: Backbone,
    drawings: Sequence[_Drawing],
    prompts: int,
    config: RunConfig,
    step: int,
    penalties: list[Tensor],
) -> Tensor:
    samples = [drawing.sample for drawing in drawings]
    seeds = [derive_seed(config.seed, step, "noise", drawing.item) for drawing in drawings]
    scored = backbone.generation_loss(samples, seeds)
    penalties.append(scored.penalty.detach())
    signals = scored.loss.new_tensor([drawing.signal for drawing in drawings])
    per_prompt = scored.loss.new_tensor([drawing.share for drawing in drawings])
    penalty = config.generate.penalty_weight * (scored.penalty * per_prompt).sum()
    if uses_regression(backbone, config):
        return ((signals * scored.loss).sum() + penalty) / prompts
    if scored.token_logprobs is None:
        raise TypeError(f"{type(backbone).__name__}.generation_loss returned no token log-probs")
    terms = []
    for row, sample, signal in zip(scored.token_logprobs, samples, signals.tolist(), strict=True):
        if sample.token_logprobs is None:
            raise TypeError(f"{type(backbone).__name__}.generate stored no token log-probs")
        old = sample.token_logprobs.to(row)
        terms.append(clipped_policy_terms(row[: len(old)], old, signal, config.policy.clip).mean())
    return ((torch.stack(terms) * per_prompt).sum() + penalty) / prompts
