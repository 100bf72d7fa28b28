"""Backbones that leave traces: in global state, in memory, in what they were given."""

from __future__ import annotations

import torch

from asg_core.backbones.interface import Role, TextSample, TextSampling
from asg_core.tiny.backbone import TinyBackbone

from .registry import caught_by


@caught_by("hygiene.global_generators")
class DrawsForALog(TinyBackbone):
    """Consumes the global generator."""

    def solve(self, requests, sampling: TextSampling, role=Role.SOLVER):
        torch.rand(1)
        return super().solve(requests, sampling, role)


@caught_by("hygiene.modes")
class LeavesGradOff(TinyBackbone):
    """Switches grad mode off and leaves it so."""

    def solve(self, requests, sampling, role=Role.SOLVER) -> list[TextSample]:
        torch.set_grad_enabled(False)
        return super().solve(requests, sampling, role)


@caught_by("hygiene.modes")
class LeavesTrainingOn(TinyBackbone):
    """Switches the model to training mode for its loss and leaves it so."""

    def generation_loss(self, samples, noise_seeds):
        self._model.train()
        return super().generation_loss(samples, noise_seeds)


@caught_by("hygiene.memory")
class KeepsEverything(TinyBackbone):
    """A log that grows with every call."""

    def generation_loss(self, samples, noise_seeds):
        self.__dict__.setdefault("log", []).append(torch.zeros(200_000))
        return super().generation_loss(samples, noise_seeds)


@caught_by("hygiene.inputs")
class DrawsIntoThePicture(TinyBackbone):
    """Marks the pictures that it has seen."""

    def solve(self, requests, sampling, role=Role.SOLVER):
        samples = super().solve(requests, sampling, role)
        for request in requests:
            if request.image is not None:
                request.image.putpixel((0, 0), (1, 2, 3))
        return samples
