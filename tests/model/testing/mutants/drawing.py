"""Backbones that draw wrongly, or score a drawing by something else than its trajectory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from asg_core.backbones.interface import GenerationLoss, ImageSample, Role
from asg_core.backbones.manifest import Capabilities
from asg_core.tiny.backbone import TinyBackbone
from asg_core.tiny.generation import code_logits
from asg_core.tiny.plugin import MANIFEST

from .registry import caught_by


@caught_by("drawing.seeds")
class DrawsFromTheGlobalGenerator(TinyBackbone):
    """All candidates of a batch share one stream."""

    def generate(self, requests, sampling, role=Role.GENERATOR):
        drawn = [replace(r, seed=int(torch.randint(2**62, ()))) for r in requests]
        samples = super().generate(drawn, sampling, role)
        return [replace(sample, request=request) for sample, request in zip(samples, requests, strict=True)]


@caught_by("drawing.images")
class TransparentImages(TinyBackbone):
    """Images are not RGB."""

    def generate(self, requests, sampling, role=Role.GENERATOR):
        return [replace(s, image=s.image.convert("RGBA")) for s in super().generate(requests, sampling, role)]


@caught_by("drawing.reads_the_prompt")
class IgnoresThePrompt(TinyBackbone):
    """Draws the same whatever is asked for."""

    def _prompts(self, requests):
        return super()._prompts([replace(request, prompt="a circle") for request in requests])


@caught_by("drawing.gradient")
class LossWithoutGradient(TinyBackbone):
    """The loss is computed under no_grad."""

    def generation_loss(self, samples, noise_seeds):
        with torch.no_grad():
            return super().generation_loss(samples, noise_seeds)


@caught_by("drawing.gradient")
class HalfALoss(TinyBackbone):
    """The penalty is not in the graph."""

    def generation_loss(self, samples, noise_seeds):
        result = super().generation_loss(samples, noise_seeds)
        return replace(result, penalty=result.penalty.detach())


@caught_by("drawing.weighting")
class BatchStatistics(TinyBackbone):
    """Losses are divided by the batch's mean."""

    def generation_loss(self, samples, noise_seeds):
        result = super().generation_loss(samples, noise_seeds)
        return GenerationLoss(result.loss / result.loss.mean(), result.penalty, result.token_logprobs)


@caught_by("drawing.trajectory")
class RemembersByObject(TinyBackbone):
    """The codes are kept beside the sample and not in its trajectory."""

    def generate(self, requests, sampling, role=Role.GENERATOR):
        samples = super().generate(requests, sampling, role)
        self._kept = [(sample.trajectory, sample.trajectory["codes"]) for sample in samples]
        for sample in samples:
            sample.trajectory["codes"] = torch.zeros_like(sample.trajectory["codes"])
        return samples

    def generation_loss(self, samples: Sequence[ImageSample], noise_seeds):
        def whole(sample: ImageSample) -> ImageSample:
            codes = [codes for trajectory, codes in self._kept if trajectory is sample.trajectory]
            return replace(
                sample, trajectory={**sample.trajectory, "codes": (codes or [sample.trajectory["codes"]])[0]}
            )

        return super().generation_loss([whole(sample) for sample in samples], noise_seeds)


@caught_by("drawing.token_logprobs")
class UnwarmedTokenLogprobs(TinyBackbone):
    """Scores image tokens at temperature 1 whatever they were sampled at."""

    def generation_loss(self, samples, noise_seeds):
        cold = [replace(s, trajectory={**s.trajectory, "temperature": torch.tensor(1.0)}) for s in samples]
        return super().generation_loss(cold, noise_seeds)


@caught_by("drawing.token_logprobs")
class StoresLogprobsOfTheBase(TinyBackbone):
    """What is stored for drawn tokens was computed with the adapter off."""

    def generate(self, requests, sampling, role=Role.GENERATOR):
        samples = super().generate(requests, sampling, role)
        if role is None or not samples:
            return samples
        codes = torch.stack([sample.trajectory["codes"] for sample in samples])
        with torch.no_grad(), self.adapters.use(None):
            scores = code_logits(self._model, self._prompts(requests), codes) / sampling.temperature
        logprobs = scores.log_softmax(-1).gather(-1, codes[..., None])[..., 0]
        return [replace(sample, token_logprobs=row) for sample, row in zip(samples, logprobs, strict=True)]


@caught_by("drawing.flow_records")
class SaysItIsAFlow(TinyBackbone):
    """Declares a flow and draws tokens."""

    manifest = MANIFEST.model_copy(update={"capabilities": Capabilities(image_loss="flow")})
