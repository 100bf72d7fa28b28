"""Backbones that answer wrongly: seeds, batches, records, and what they see."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor

from asg_core.backbones.interface import Role, broadcast_sampling
from asg_core.tiny.backbone import TinyBackbone
from asg_core.tiny.causal import TinyCausal

from .registry import caught_by


@caught_by("text.seeds")
class SharedGenerator(TinyBackbone):
    """Samples from the global generator instead of the requests' seeds."""

    def solve(self, requests, sampling, role=Role.SOLVER):
        drawn = [replace(r, seed=int(torch.randint(2**62, ()))) for r in requests]
        samples = super().solve(drawn, sampling, role)
        return [replace(sample, request=request) for sample, request in zip(samples, requests, strict=True)]


@caught_by("text.batch")
class SeedOfThePlace(TinyBackbone):
    """A sample depends on its place in the batch."""

    def solve(self, requests, sampling, role=Role.SOLVER):
        drawn = [replace(r, seed=r.seed + i) for i, r in enumerate(requests)]
        samples = super().solve(drawn, sampling, role)
        return [replace(sample, request=request) for sample, request in zip(samples, requests, strict=True)]


@caught_by("text.entropy")
class EntropyOfTheWarmedLogits(TinyBackbone):
    """Entropies after temperature."""

    def solve(self, requests, sampling, role=Role.SOLVER):
        samples = super().solve(requests, sampling, role)
        return [replace(s, entropies=tuple(e * sampling.temperature for e in s.entropies)) for s in samples]


@caught_by("text.max_new_tokens")
class OneTokenMore(TinyBackbone):
    """Does not count the stop token."""

    def solve(self, requests, sampling, role=Role.SOLVER):
        return super().solve(requests, replace(sampling, max_new_tokens=sampling.max_new_tokens + 1), role)


@caught_by("text.greedy")
class LukewarmGreedy(TinyBackbone):
    """Temperature 0 samples a little."""

    def solve(self, requests, sampling, role=Role.SOLVER):
        return super().solve(requests, replace(sampling, temperature=sampling.temperature or 0.7), role)


@caught_by("text.own_sampling")
class OneSamplingForAll(TinyBackbone):
    """What the first request asked for is done to all."""

    def solve(self, requests, sampling, role=Role.SOLVER):
        return super().solve(requests, broadcast_sampling(sampling, len(requests))[0], role) if requests else []


@caught_by("text.records")
class PiecesThatDoNotJoin(TinyBackbone):
    """The text is stripped, the pieces are not."""

    def solve(self, requests, sampling, role=Role.SOLVER):
        return [replace(s, text=s.text[1:]) for s in super().solve(requests, sampling, role)]


class _OtherText(TinyBackbone):
    """Swaps the text half for a broken one."""

    broken: type[TinyCausal]

    def __init__(self, model, vocabulary, request):
        super().__init__(model, vocabulary, request)
        self.text = self.broken(model, vocabulary)


class _IgnoresPadding(TinyCausal):
    def forward(self, embeds: Tensor, mask: Tensor, positions: Tensor, cache: Any) -> Tensor:
        length, total = mask.shape[-2:]
        causal = torch.ones(length, total, dtype=torch.bool).tril(total - length)
        return super().forward(embeds, causal.expand_as(mask), positions, cache)


@caught_by("text.batch")
class WrongPadding(_OtherText):
    """Attends to the padding of shorter rows when it samples."""

    broken = _IgnoresPadding


class _SeesNothing(TinyCausal):
    def vision(self, images: Sequence[Image]) -> list[Tensor]:
        return [torch.zeros_like(tokens) for tokens in super().vision(images)]


@caught_by("text.sees_the_image")
class Blind(_OtherText):
    """The picture's features never reach the model."""

    broken = _SeesNothing


class _CachesBySize(TinyCausal):
    def vision(self, images: Sequence[Image]) -> list[Tensor]:
        if not hasattr(self, "kept"):
            self.kept = {}
        return [self.kept.setdefault(image.size, super(_CachesBySize, self).vision([image])[0]) for image in images]


@caught_by("text.image_cache")
class CachesBySize(_OtherText):
    """Pictures of one size, and so of equal token ids, share their features."""

    broken = _CachesBySize
