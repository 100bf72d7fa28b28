"""Ablations: the method with one thing taken away or replaced, to measure what that thing contributes.

``config.Ablation`` lists them. The method asks here where they differ and never reads their names.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from asg_core.backbones.interface import (
    Backbone,
    ImageRequest,
    ImageSample,
    ImageSampling,
    Role,
    TextRequest,
    TextSampling,
)
from asg_core.data.image_pool import PoolImage
from asg_core.method.context import StepContext
from asg_core.method.prompts import CANONICAL_FRAMING, FRAMINGS, SPEC_PROMPT, GateFailure, parse_spec
from asg_core.method.records import GenerationItem


def framings(ctx: StepContext) -> Sequence[str]:
    """Return the framings to sample answers under: the method's, or as many times the canonical one."""
    chosen = FRAMINGS[: ctx.config.solve.framings]
    return [CANONICAL_FRAMING] * len(chosen) if ctx.config.ablation == "one_framing" else chosen


def images(model: Backbone, pool: Sequence[PoolImage], ctx: StepContext) -> list[PoolImage]:
    """Return what to learn from: ``pool``, this process's share of the step's images, perhaps none; or for each a
    drawing of what the Proposer wrote about it. Where the text is no spec, all of it is the prompt."""
    if ctx.config.ablation != "own_drawings" or not pool:
        return list(pool)
    ask = ctx.config.ask
    asked = [
        TextRequest(SPEC_PROMPT, source.image, ctx.seed("own spec", i)) for i, source in enumerate(pool, ctx.offset)
    ]
    requests = []
    for i, sample in enumerate(model.ask(asked, TextSampling(ask.spec_max_new_tokens, ask.temperature)), ctx.offset):
        spec = parse_spec(sample.text)
        prompt = sample.text if isinstance(spec, GateFailure) else spec.prompt
        requests.append(ImageRequest(prompt, ctx.seed("own drawing", i)))
    drawings = model.generate(requests, ImageSampling("rollout", ctx.config.generate.temperature))
    return [replace(source, image=drawing.image) for source, drawing in zip(pool, drawings, strict=True)]


def rewards(groups: Sequence[Sequence[float]], ctx: StepContext, role: Role) -> list[list[float]]:
    """Return the rewards of several groups: as they are, uniform noise in [0, 1), or dealt out again over all groups by
    a seeded permutation, which keeps their distribution and breaks their meaning."""
    rng = random.Random(ctx.seed("control", role.value))
    flat = [reward for group in groups for reward in group]
    match ctx.config.ablation:
        case "random_rewards":
            flat = [rng.random() for _ in flat]
        case "shuffled_votes":
            rng.shuffle(flat)
    values = iter(flat)
    return [[next(values) for _ in group] for group in groups]


def score_left_out(ctx: StepContext) -> str | None:
    """Return the name of the Generator's score that is left out of its reward, or None."""
    ablation = ctx.config.ablation
    return ablation.removeprefix("no_") if ablation.startswith("no_") else None


def old_logprobs(first: Tensor, base: Tensor, ctx: StepContext) -> Tensor:
    """Return the (T,) nats that the policy ratio divides by: of the first inner step, or of the base model."""
    return base if ctx.config.ablation == "base_ratio" else first


def targets(model: Backbone, item: GenerationItem, ctx: StepContext) -> list[tuple[ImageSample, float]]:
    """Return what the Generator learns from one prompt, each image with its weight or advantage.

    The candidates; or the source image alone, with the best candidate's reward as its weight. Raises CapabilityError
    if the source image is wanted and the backbone cannot take an image for its own drawing.
    """
    usable = [c for c in item.candidates if c.signal is not None]
    if ctx.config.ablation != "source_images" or not usable:
        return [(c.sample, c.signal) for c in usable if c.signal is not None]
    best = max(c.reward for c in usable)
    return [(model.as_drawn(usable[0].sample.request, item.source.image), best)]
