"""The update of the Generator (METHOD, Generation step 4).

flow    L = sum_l w_l loss_l + beta_g mean penalty,   w = softmax(R / tau)
tokens  the clipped loss of the text roles (``updates``) on the stored image tokens, plus beta_g penalty
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from asg_core.backbones.devices import tensor_on
from asg_core.backbones.interface import Backbone, ImageSample
from asg_core.method.context import StepContext
from asg_core.method.generation import uses_regression
from asg_core.method.losses import clipped_policy_terms
from asg_core.method.records import GenerationItem
from asg_core.method.updates import Learner, Lesson, StepResult, Update, UpdateReport, joined


@dataclass(eq=False)
class _Drawing(Lesson[ImageSample]):
    """What the Generator learns from, with the seed of its noise and its share of its prompt's mean penalty."""

    noise_seed: int
    share: float


def update_generator(
    model: Backbone, items: Sequence[GenerationItem], learner: Learner, ctx: StepContext
) -> UpdateReport:
    """Take one update of the Generator on its own candidates, never on the source image.

    Regression takes one optimizer step, policy gradient ``policy.inner_steps``. Timestep and noise are shared by the
    candidates of one prompt.

    Args:
        items: of all processes; this one learns from those that are its own.
        ctx: of the step; ``groups_at_once`` counts candidates here, also fewer than a prompt has.

    Raises:
        TrainingStopped: the replayed log-probs of image tokens are not the sampled ones; nothing has moved.
    """
    drawn = [item for item in items if item.candidates]
    teaching = [item for item in drawn if any(c.signal for c in item.candidates)]
    silent = 1 - len(teaching) / len(drawn) if drawn else None
    dropped = sum(c.signal is None for item in drawn for c in item.candidates)
    report = UpdateReport(StepResult(), None, dropped, silent)
    if not teaching or learner.optimizer.lr == 0:
        return report
    steps = 1 if uses_regression(model, ctx.config) else ctx.config.policy.inner_steps
    update = _GeneratorUpdate(model, learner, ctx, len(teaching))
    return update.take(_lessons(model, items, ctx), steps, report)


def _lessons(model: Backbone, items: Sequence[GenerationItem], ctx: StepContext) -> list[list[_Drawing]]:
    """This process's drawings by prompt; each by itself where memory is short."""
    groups = []
    for i, item in enumerate(items):
        if item.mine and any(c.signal for c in item.candidates):
            targets, seed = ctx.variant.targets(model, item), ctx.seed("noise", i)
            groups.append([_Drawing(s, signal, s.token_logprobs, seed, 1 / len(targets)) for s, signal in targets])
    return [[drawing] for group in groups for drawing in group] if ctx.groups_at_once else groups


class _GeneratorUpdate(Update[_Drawing]):
    def loss(self, lessons: Sequence[_Drawing]) -> Tensor:
        config = self.ctx.config
        scored = self.model.generation_loss([x.sample for x in lessons], [x.noise_seed for x in lessons])
        self.divergences.append(scored.penalty.detach())
        device, dtype = scored.loss.device, scored.loss.dtype
        signals = tensor_on(device, [drawing.signal for drawing in lessons], dtype)
        per_prompt = tensor_on(device, [drawing.share for drawing in lessons], dtype)
        penalty = config.generate.penalty_weight * (scored.penalty * per_prompt).sum()
        tokens, rows = [], scored.token_logprobs
        for drawing, row in zip(lessons, [] if rows is None else rows, strict=rows is not None):
            if drawing.stored is not None:
                new = row[: len(drawing.stored)]
                tokens.append((new, drawing.first(new), drawing.signal))
        if uses_regression(self.model, config):
            return ((signals * scored.loss).sum() + penalty) / self.count
        if len(tokens) < len(lessons):
            raise TypeError(
                f"{type(self.model).__name__} stored no token log-probs while drawing, or returned none now"
            )
        terms = [clipped_policy_terms(new, old, signal, config.policy.clip).mean() for new, old, signal in tokens]
        return ((torch.stack(terms) * per_prompt).sum() + penalty) / self.count

    def again(self, batch: Sequence[_Drawing]) -> tuple[Tensor, Tensor]:
        copies = 1 if len(batch) > 1 else 2
        scores = self.model.generation_loss([batch[0].sample] * copies, [0] * copies).token_logprobs
        first = joined(batch[:1])
        return first, first if scores is None else scores[0, : len(first)]
