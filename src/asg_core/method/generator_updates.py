"""The update of the Generator (METHOD, Generation step 4).

flow    L = sum_l w_l loss_l + beta_g mean penalty,   w = softmax(R / tau)
tokens  the clipped loss of the text roles (``update``) on the stored image tokens, plus beta_g penalty

Prompts without signal (all rewards equal) are left out altogether, so that they change nothing, exactly.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from asg_core.backbones.devices import tensor_on
from asg_core.backbones.interface import Backbone, ImageSample, Role
from asg_core.config.schema import RunConfig
from asg_core.config.seeding import derive_seed
from asg_core.method.ablations import generator_targets
from asg_core.method.generation import uses_regression
from asg_core.method.policy import clipped_policy_terms
from asg_core.method.records import GenerationItem
from asg_core.method.replay import NoiseFloor, Replay
from asg_core.method.updates import UpdateReport, batches_of, mean_of, weighted_mean
from asg_core.training.optimizer import RoleOptimizer, StepResult


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
    backbone: Backbone,
    items: Sequence[GenerationItem],
    optimizer: RoleOptimizer,
    config: RunConfig,
    step: int,
    at_once: int = 0,
    floor: NoiseFloor | None = None,
) -> UpdateReport:
    """One update of the Generator on its own candidates, never on the source image.

    Regression takes one optimizer step, policy gradient ``policy.inner_steps``. Timestep and noise are shared by the
    candidates of one prompt. ``UpdateReport.kl`` is the mean penalty. Raises TrainingStopped, before anything moves,
    when the replayed log-probs of image tokens are not the sampled ones.

    Args:
        items: the whole step's; this process learns from those that are its own.
        at_once: candidates per backward pass, also fewer than a prompt has; 0: as configured.
        floor: what rounding does to log-probs of image tokens, see Replay.
    """
    drawn = [item for item in items if item.candidates]
    signal = [item for item in drawn if any(c.signal for c in item.candidates)]
    silent = 1 - len(signal) / len(drawn) if drawn else None
    dropped = sum(c.signal is None for item in drawn for c in item.candidates)
    if not signal or optimizer.lr == 0:
        return UpdateReport(StepResult(), None, dropped, silent)
    groups = []
    for i, item in enumerate(items):
        if item.mine and any(c.signal for c in item.candidates):
            taught = generator_targets(backbone, item, config.control)
            groups.append([_Drawing(sample, weight, i, 1.0 / len(taught)) for sample, weight in taught])
    if at_once:
        groups = [[drawing] for group in groups for drawing in group]
    batches = list(batches_of(groups, at_once or config.optimizer.groups_per_pass(len(groups))))
    penalties: list[Tensor] = []
    replay = Replay(floor, config.policy.clip)

    def losses(first: bool) -> Iterator[Callable[[], Tensor]]:
        for batch in batches:
            yield lambda batch=batch: _generator_loss(backbone, batch, len(signal), config, step, penalties)  # type: ignore[misc]
        if first:
            _check_drawings(backbone, batches, replay)

    result = StepResult()
    for inner in range(1 if uses_regression(backbone, config) else config.policy.inner_steps):
        penalties.clear()
        result = optimizer.step(losses(inner == 0), lambda: (*weighted_mean(penalties), *replay.sums))
        if result.nonfinite:
            break
    return UpdateReport(result, mean_of(result.sums), dropped, silent, replay.settle(result.sums[2:]))


def _generator_loss(
    backbone: Backbone,
    drawings: Sequence[_Drawing],
    prompts: int,
    config: RunConfig,
    step: int,
    penalties: list[Tensor],
) -> Tensor:
    seeds = [derive_seed(config.seed, step, "noise", drawing.item) for drawing in drawings]
    scored = backbone.generation_loss([drawing.sample for drawing in drawings], seeds)
    penalties.append(scored.penalty.detach())
    if scored.token_logprobs is not None:
        for row, drawing in zip(scored.token_logprobs, drawings, strict=True):
            if drawing.old is None and drawing.sample.token_logprobs is not None:
                drawing.old = row[: len(drawing.sample.token_logprobs)].detach()
    device, dtype = scored.loss.device, scored.loss.dtype
    signals = tensor_on(device, [drawing.signal for drawing in drawings], dtype)
    per_prompt = tensor_on(device, [drawing.share for drawing in drawings], dtype)
    penalty = config.generate.penalty_weight * (scored.penalty * per_prompt).sum()
    if uses_regression(backbone, config):
        return ((signals * scored.loss).sum() + penalty) / prompts
    if scored.token_logprobs is None:
        raise TypeError(f"{type(backbone).__name__}.generation_loss returned no token log-probs")
    terms = []
    for row, drawing in zip(scored.token_logprobs, drawings, strict=True):
        if drawing.old is None:
            raise TypeError(f"{type(backbone).__name__}.generate stored no token log-probs")
        new = row[: len(drawing.old)]
        terms.append(clipped_policy_terms(new, drawing.old, drawing.signal, config.policy.clip).mean())
    return ((torch.stack(terms) * per_prompt).sum() + penalty) / prompts


def _check_drawings(backbone: Backbone, batches: Sequence[Sequence[_Drawing]], replay: Replay) -> None:
    drawn = [drawing for batch in batches for drawing in batch if drawing.old is not None]
    if not drawn:
        return
    scored = _scored(drawn)
    stored = torch.cat([d.sample.token_logprobs for d in drawn if d.sample.token_logprobs is not None])

    def again() -> tuple[Tensor, Tensor]:
        copies = 1 if len(batches[0]) > 1 else 2
        scores = backbone.generation_loss([drawn[0].sample] * copies, [0] * copies).token_logprobs
        first = _scored(drawn[:1])
        return first, first if scores is None else scores[0, : len(first)]

    replay.check(scored, stored.to(scored), again, Role.GENERATOR, backbone.dtype)


def _scored(drawings: Sequence[_Drawing]) -> Tensor:
    return torch.cat([drawing.old for drawing in drawings if drawing.old is not None])
