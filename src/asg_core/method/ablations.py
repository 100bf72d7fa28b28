"""Controls: a step with one thing of the method taken away or replaced, to measure what that thing contributes.

Which ones there are, and what each does, is ``config.Control``. What only changes a number is done where that number is
made; here is what needs more.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

from asg_core.backbones.interface import Backbone, ImageRequest, ImageSample, ImageSampling, TextRequest, TextSampling
from asg_core.config.schema import Control, RunConfig
from asg_core.config.seeding import derive_seed
from asg_core.data.image_pool import PoolImage
from asg_core.method.prompts import SPEC_PROMPT, GateFailure, parse_spec
from asg_core.method.records import GenerationItem


def perturb_rewards(rewards: Sequence[Sequence[float]], control: Control, seed: int) -> list[list[float]]:
    """The rewards of several groups, as uniform noise in [0, 1) under "random_rewards"; under "shuffled_votes" dealt
    out again over all groups by a seeded permutation, which keeps their distribution and breaks their meaning; else as
    they are. Group sizes are kept."""
    if control not in ("random_rewards", "shuffled_votes"):
        return [list(group) for group in rewards]
    rng = random.Random(seed)
    flat = [value for group in rewards for value in group]
    if control == "random_rewards":
        flat = [rng.random() for _ in flat]
    else:
        rng.shuffle(flat)
    values = iter(flat)
    return [[next(values) for _ in group] for group in rewards]


def self_drawn_images(
    backbone: Backbone, images: Sequence[PoolImage], config: RunConfig, step: int, first: int
) -> list[PoolImage]:
    """The images, each replaced by a drawing of what the Proposer wrote about it ("own_drawings").

    Where the text is no spec, all of it is the prompt.

    Args:
        images: this process's share of the step's images, perhaps none.
        first: place of ``images[0]`` among the step's images.
    """
    if not images:
        return []
    places = range(first, first + len(images))
    asked = [
        TextRequest(SPEC_PROMPT, source.image, derive_seed(config.seed, step, "own spec", i))
        for i, source in zip(places, images, strict=True)
    ]
    written = backbone.ask(asked, TextSampling(config.ask.spec_max_new_tokens, config.ask.temperature))
    requests = []
    for i, sample in zip(places, written, strict=True):
        spec = parse_spec(sample.text)
        prompt = sample.text if isinstance(spec, GateFailure) else spec.prompt
        requests.append(ImageRequest(prompt, derive_seed(config.seed, step, "own drawing", i)))
    drawings = backbone.generate(requests, ImageSampling("rollout", config.generate.temperature))
    return [replace(source, image=drawing.image) for source, drawing in zip(images, drawings, strict=True)]


def generator_targets(backbone: Backbone, item: GenerationItem, control: Control) -> list[tuple[ImageSample, float]]:
    """What the Generator learns from one prompt: its candidates with their weights or advantages; under
    "source_images" the source image alone, with the best candidate's reward as its weight.

    Raises:
        CapabilityError: the backbone cannot take an image for a drawing of its own.
    """
    usable = [c for c in item.candidates if c.signal is not None]
    if control != "source_images" or not usable:
        return [(c.sample, c.signal) for c in usable if c.signal is not None]
    best = max(c.reward for c in usable)
    return [(backbone.as_drawn(usable[0].sample.request, item.source.image), best)]
