"""Backbones that forget where their model is."""

from __future__ import annotations

from dataclasses import replace

import torch

from asg_core.backbones.interface import Role
from asg_core.tiny.backbone import TinyBackbone

from .registry import caught_by


@caught_by("device.one")
class WeightsOfTheHost(TinyBackbone):
    """Multiplies by a tensor that was made without a device."""

    def token_logits(self, samples, role, **wanted):
        scores = super().token_logits(samples, role, **wanted)
        return [replace(score, logprobs=score.logprobs * torch.ones(len(score.logprobs))) for score in scores]


@caught_by("device.one")
class NoiseOfTheHost(TinyBackbone):
    """Draws noise on the device with a generator of the CPU."""

    def generate(self, requests, sampling, role=Role.GENERATOR):
        torch.randn(3, generator=torch.Generator().manual_seed(0), device=self.device)
        return super().generate(requests, sampling, role)


@caught_by("device.one")
class NumpyOfTheDevice(TinyBackbone):
    """Hands a tensor of the device to numpy."""

    def token_logits(self, samples, role, **wanted):
        scores = super().token_logits(samples, role, **wanted)
        for score in scores:
            score.entropies.numpy()
        return scores


@caught_by("device.one")
class IndexedByTheDevice(TinyBackbone):
    """Looks something up in a table of the CPU with an index of the device."""

    def embed(self, items):
        order = torch.arange(len(items), device=self.device)
        torch.eye(len(items))[order]
        return super().embed(items)


@caught_by("device.one")
class StaysAtHome(TinyBackbone):
    """Does not go where it is asked to."""

    @property
    def device(self):
        return torch.device("cpu")
