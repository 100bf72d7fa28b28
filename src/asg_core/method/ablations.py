"""Ablations: the method with one thing taken away or replaced, to measure what that thing contributes.

``config.Ablation`` lists them. The method asks its :class:`Variant` where they differ and never reads their names.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from asg_core.backbones.interface import Backbone, ImageRequest, ImageSample, ImageSampling, TextRequest, TextSampling
from asg_core.config.schema import Ablation, RunConfig
from asg_core.config.seeding import Seed
from asg_core.data.image_pool import PoolImage
from asg_core.method.prompts import CANONICAL_FRAMING, SPEC_PROMPT, GateFailure, parse_spec
from asg_core.method.records import GenerationItem

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Variant:
    """The method, or one ablation of it.

    Attributes:
        name: of the ablation; "none" is the method as it is.
    """

    name: Ablation = "none"

    def framings(self, framings: Sequence[str]) -> Sequence[str]:
        """Return the framings to sample answers under: ``framings``, or as many times the canonical one."""
        return [CANONICAL_FRAMING] * len(framings) if self.name == "one_framing" else framings

    def images(
        self, model: Backbone, images: Sequence[PoolImage], config: RunConfig, seed: Seed, first: int
    ) -> list[PoolImage]:
        """Return what to learn from: ``images``, or the model's own drawings (:func:`self_drawn_images`)."""
        if self.name != "own_drawings":
            return list(images)
        return self_drawn_images(model, images, config, seed, first)

    def rewards(self, groups: Sequence[Sequence[float]], seed: int) -> list[list[float]]:
        """Return the rewards of several groups as they are, or perturbed (:func:`perturb_rewards`)."""
        return perturb_rewards(groups, self.name, seed)

    @property
    def without_score(self) -> str | None:
        """Name of the Generator's score that is left out of its reward, or None."""
        return self.name.removeprefix("no_") if self.name.startswith("no_") else None

    def old_logprobs(self, first: Tensor, base: Tensor) -> Tensor:
        """Return the (T,) nats that the policy ratio divides by: of the first inner step, or of the base model."""
        return base if self.name == "base_ratio" else first

    def targets(self, model: Backbone, item: GenerationItem) -> list[tuple[ImageSample, float]]:
        """Return what the Generator learns from one prompt, each image with its weight or advantage.

        The candidates; or the source image alone, with the best candidate's reward as its weight.

        Raises:
            CapabilityError: the source image is wanted and the backbone cannot take an image for its own drawing.
        """
        usable = [c for c in item.candidates if c.signal is not None]
        if self.name != "source_images" or not usable:
            return [(c.sample, c.signal) for c in usable if c.signal is not None]
        best = max(c.reward for c in usable)
        return [(model.as_drawn(usable[0].sample.request, item.source.image), best)]


def perturb_rewards(rewards: Sequence[Sequence[float]], ablation: Ablation, seed: int) -> list[list[float]]:
    """Return the rewards of several groups as the ablation wants them; group sizes are kept.

    "random_rewards" are uniform noise in [0, 1). "shuffled_votes" are the same values dealt out again over all groups
    by a seeded permutation, which keeps their distribution and breaks their meaning. Others leave them as they are.
    """
    if ablation not in ("random_rewards", "shuffled_votes"):
        return [list(group) for group in rewards]
    rng = random.Random(seed)
    flat = [value for group in rewards for value in group]
    if ablation == "random_rewards":
        flat = [rng.random() for _ in flat]
    else:
        rng.shuffle(flat)
    values = iter(flat)
    return [[next(values) for _ in group] for group in rewards]


def self_drawn_images(
    model: Backbone, images: Sequence[PoolImage], config: RunConfig, seed: Seed, first: int
) -> list[PoolImage]:
    """Return the images, each replaced by a drawing of what the Proposer wrote about it.

    Where the text is no spec, all of it is the prompt.

    Args:
        model: writes and draws.
        images: this process's share of the step's images, perhaps none.
        config: how to sample.
        seed: of the step; called with ("own spec", image) and ("own drawing", image).
        first: number of ``images[0]`` for the seeds.
    """
    if not images:
        return []
    asked = [
        TextRequest(SPEC_PROMPT, source.image, seed("own spec", i)) for i, source in enumerate(images, start=first)
    ]
    written = model.ask(asked, TextSampling(config.ask.spec_max_new_tokens, config.ask.temperature))
    requests = []
    for i, sample in enumerate(written, start=first):
        spec = parse_spec(sample.text)
        prompt = sample.text if isinstance(spec, GateFailure) else spec.prompt
        requests.append(ImageRequest(prompt, seed("own drawing", i)))
    drawings = model.generate(requests, ImageSampling("rollout", config.generate.temperature))
    return [replace(source, image=drawing.image) for source, drawing in zip(images, drawings, strict=True)]
