"""Ablations: the method with one thing taken away or replaced, to measure what that thing contributes.

``config.Ablation`` lists them. The method asks its :class:`Variant` where they differ and never reads their names.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from asg_core.backbones.interface import Backbone, ImageRequest, ImageSample, ImageSampling, TextRequest, TextSampling
from asg_core.config.schema import Ablation, RunConfig
from asg_core.config.seeding import Seed
from asg_core.data.image_pool import PoolImage
from asg_core.method.prompts import CANONICAL_FRAMING, SPEC_PROMPT, GateFailure, parse_spec
from asg_core.method.records import GenerationItem

_LEFT_OUT = {f"no_{score}": score for score in ("fidelity", "cycle", "diversity", "contradiction")}


@dataclass(frozen=True)
class Variant:
    """The method as it is ("none"), or one ablation of it."""

    name: Ablation = "none"

    def framings(self, framings: Sequence[str]) -> Sequence[str]:
        """Return the framings to sample answers under: ``framings``, or as many times the canonical one."""
        return [CANONICAL_FRAMING] * len(framings) if self.name == "one_framing" else framings

    def images(
        self, model: Backbone, images: Sequence[PoolImage], config: RunConfig, seed: Seed, first: int
    ) -> list[PoolImage]:
        """Return what to learn from: ``images``, or for each a drawing of what the Proposer wrote about it.

        Where the text is no spec, all of it is the prompt.

        Args:
            images: this process's share of the step's images, perhaps none.
            seed: of the step; called with ("own spec", image) and ("own drawing", image).
            first: number of ``images[0]`` for the seeds.
        """
        if self.name != "own_drawings" or not images:
            return list(images)
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

    def rewards(self, groups: Sequence[Sequence[float]], seed: int) -> list[list[float]]:
        """Return the rewards of several groups: as they are, uniform noise in [0, 1), or dealt out again over all
        groups by a seeded permutation, which keeps their distribution and breaks their meaning."""
        rng = random.Random(seed)
        flat = [reward for group in groups for reward in group]
        match self.name:
            case "random_rewards":
                flat = [rng.random() for _ in flat]
            case "shuffled_votes":
                rng.shuffle(flat)
        values = iter(flat)
        return [[next(values) for _ in group] for group in groups]

    @property
    def without_score(self) -> str | None:
        """Name of the Generator's score that is left out of its reward, or None."""
        return _LEFT_OUT.get(self.name)

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
