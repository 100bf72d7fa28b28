"""The update of the Generator (METHOD, Generation step 4).

flow    L = sum_l w_l loss_l + beta_g mean penalty,   w = softmax(R / tau)
tokens  the clipped loss of the text roles (``updates``) on the stored image tokens, plus beta_g penalty

Prompts without signal (all rewards equal) are left out altogether, so that they change nothing, exactly.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from asg_core.backbones.devices import tensor_on
from asg_core.backbones.interface import Backbone, ImageSample, Role
from asg_core.method.context import StepContext
from asg_core.method.generation import uses_regression
from asg_core.method.learner import Learner, StepResult, UpdateReport
from asg_core.method.losses import clipped_policy_terms
from asg_core.method.records import GenerationItem
from asg_core.method.replay import Replay
from asg_core.method.updates import batches_of, mean_of, weighted_mean


@dataclass(eq=False)
class _Drawing:
    """What the Generator learns from: a drawing, its weight or advantage, the place of its item among the step's, its
    share of the prompt's mean penalty, and ``old``, its log-probs of the first inner step, once there are any."""

    sample: ImageSample
    signal: float
    item: int
    share: float
    old: Tensor | None = None


def update_generator(
    model: Backbone, items: Sequence[GenerationItem], learner: Learner, ctx: StepContext
) -> UpdateReport:
    """Take one update of the Generator on its own candidates, never on the source image.

    Regression takes one optimizer step, policy gradient ``policy.inner_steps``. Timestep and noise are shared by the
    candidates of one prompt.

    Args:
        model: scores the candidates.
        items: of all processes; this one learns from those that are its own.
        learner: the Generator.
        ctx: of the step; ``groups_at_once`` counts candidates here, also fewer than a prompt has.

    Raises:
        TrainingStopped: the replayed log-probs of image tokens are not the sampled ones; nothing has moved.
    """
    drawn = [item for item in items if item.candidates]
    signal = [item for item in drawn if any(c.signal for c in item.candidates)]
    silent = 1 - len(signal) / len(drawn) if drawn else None
    dropped = sum(c.signal is None for item in drawn for c in item.candidates)
    if not signal or learner.optimizer.lr == 0:
        return UpdateReport(StepResult(), None, dropped, silent)
    config = ctx.config
    groups = _targets(model, items, ctx)
    batches = list(batches_of(groups, ctx.groups_at_once or config.optimizer.groups_per_pass(len(groups))))
    loss = _DrawingLoss(model, ctx, len(signal))
    replay = Replay(learner.floor, config.policy.clip)

    def losses(first: bool) -> Iterator[Callable[[], Tensor]]:
        for batch in batches:
            yield lambda batch=batch: loss(batch)  # type: ignore[misc]
        if first:
            _check_drawings(model, batches, replay)

    result = StepResult()
    for inner in range(1 if uses_regression(model, config) else config.policy.inner_steps):
        loss.penalties.clear()
        result = learner.optimizer.step(losses(inner == 0), lambda: (*weighted_mean(loss.penalties), *replay.sums))
        if result.nonfinite:
            break
    return UpdateReport(result, mean_of(result.sums), dropped, silent, replay.settle(result.sums[2:]))


def _targets(model: Backbone, items: Sequence[GenerationItem], ctx: StepContext) -> list[list[_Drawing]]:
    """This process's drawings by prompt; each by itself where memory is short."""
    groups = []
    for i, item in enumerate(items):
        if item.mine and any(c.signal for c in item.candidates):
            taught = ctx.variant.targets(model, item)
            groups.append([_Drawing(sample, weight, i, 1.0 / len(taught)) for sample, weight in taught])
    return [[drawing] for group in groups for drawing in group] if ctx.groups_at_once else groups


class _DrawingLoss:
    """The loss of some drawings of an update; ``penalties`` collects the penalties of those computed so far."""

    def __init__(self, model: Backbone, ctx: StepContext, prompts: int) -> None:
        self.penalties = list[Tensor]()
        self._model, self._ctx, self._prompts = model, ctx, prompts
        self._regression = uses_regression(model, ctx.config)

    def __call__(self, drawings: Sequence[_Drawing]) -> Tensor:
        config, name = self._ctx.config, type(self._model).__name__
        seeds = [self._ctx.seed("noise", drawing.item) for drawing in drawings]
        scored = self._model.generation_loss([drawing.sample for drawing in drawings], seeds)
        self.penalties.append(scored.penalty.detach())
        if scored.token_logprobs is not None:
            for row, drawing in zip(scored.token_logprobs, drawings, strict=True):
                if drawing.old is None and drawing.sample.token_logprobs is not None:
                    drawing.old = row[: len(drawing.sample.token_logprobs)].detach()
        device, dtype = scored.loss.device, scored.loss.dtype
        signals = tensor_on(device, [drawing.signal for drawing in drawings], dtype)
        per_prompt = tensor_on(device, [drawing.share for drawing in drawings], dtype)
        penalty = config.generate.penalty_weight * (scored.penalty * per_prompt).sum()
        if self._regression:
            return ((signals * scored.loss).sum() + penalty) / self._prompts
        if scored.token_logprobs is None:
            raise TypeError(f"{name}.generation_loss returned no token log-probs")
        terms = []
        for row, drawing in zip(scored.token_logprobs, drawings, strict=True):
            if drawing.old is None:
                raise TypeError(f"{name}.generate stored no token log-probs")
            new = row[: len(drawing.old)]
            terms.append(clipped_policy_terms(new, drawing.old, drawing.signal, config.policy.clip).mean())
        return ((torch.stack(terms) * per_prompt).sum() + penalty) / self._prompts


def _check_drawings(model: Backbone, batches: Sequence[Sequence[_Drawing]], replay: Replay) -> None:
    drawn = [drawing for batch in batches for drawing in batch if drawing.old is not None]
    if not drawn:
        return
    scored = _scored(drawn)
    stored = torch.cat([d.sample.token_logprobs for d in drawn if d.sample.token_logprobs is not None])

    def again() -> tuple[Tensor, Tensor]:
        copies = 1 if len(batches[0]) > 1 else 2
        scores = model.generation_loss([drawn[0].sample] * copies, [0] * copies).token_logprobs
        first = _scored(drawn[:1])
        return first, first if scores is None else scores[0, : len(first)]

    replay.check(scored, stored.to(scored), again, Role.GENERATOR, model.dtype)


def _scored(drawings: Sequence[_Drawing]) -> Tensor:
    return torch.cat([drawing.old for drawing in drawings if drawing.old is not None])
