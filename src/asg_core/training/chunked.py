"""A step with fewer of its images in memory at once: ``optimizer.micro_batch=auto``, once memory has run out.

A batch equals its singles and a seed belongs to a sample, so chunks change no result beyond float rounding. That tips
hardly a token in float32; in bfloat16 it tips some, and results are the same in distribution only. Chunks cost time:
smaller batches, and an image that is read again in every call, because nothing of a chunk is kept for the next.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeVar

import torch
from PIL.Image import Image
from torch import Tensor

from asg_core.backbones.interface import (
    Backbone,
    ImageRequest,
    ImageSample,
    ImageSampling,
    Role,
    TextRequest,
    TextSample,
    TextSampling,
    TextSamplings,
    TokenLogits,
    broadcast_sampling,
)
from asg_core.backbones.proxy import BackboneProxy

Item = TypeVar("Item")
Result = TypeVar("Result")


class Chunked(BackboneProxy):
    """``backbone``, whose calls see at most ``at_once`` distinct images, drawings or texts at a time; results in order.

    What a backbone keeps of an image (features, prefixes) lives as long as the image object. So each chunk gets
    copies, and what was kept of them goes with the chunk. ``generation_loss`` is not divided: the update of the
    Generator accumulates gradients itself.
    """

    def __init__(self, backbone: Backbone, at_once: int) -> None:
        super().__init__(backbone)
        self._at_once = at_once

    def ask(
        self, requests: Sequence[TextRequest], sampling: TextSamplings, role: Role | None = Role.PROPOSER
    ) -> list[TextSample]:
        """See Backbone."""
        return self._complete(self.inner.ask, requests, sampling, role)

    def solve(
        self, requests: Sequence[TextRequest], sampling: TextSamplings, role: Role | None = Role.SOLVER
    ) -> list[TextSample]:
        """See Backbone."""
        return self._complete(self.inner.solve, requests, sampling, role)

    def _complete(
        self,
        call: Callable[[Sequence[TextRequest], Sequence[TextSampling], Role | None], list[TextSample]],
        requests: Sequence[TextRequest],
        sampling: TextSamplings,
        role: Role | None,
    ) -> list[TextSample]:
        each = broadcast_sampling(sampling, len(requests))

        def work(places: Sequence[int], shown: Sequence[TextRequest]) -> list[TextSample]:
            samples = call(shown, [each[place] for place in places], role)
            return [replace(sample, request=requests[place]) for place, sample in zip(places, samples, strict=True)]

        return self._by_image(requests, work)

    def token_logits(
        self, samples: Sequence[TextSample], role: Role | None, *, base: bool = False, logits: bool = False
    ) -> list[TokenLogits]:
        """See Backbone."""

        def work(places: Sequence[int], shown: Sequence[TextRequest]) -> list[TokenLogits]:
            moved = [replace(samples[place], request=request) for place, request in zip(places, shown, strict=True)]
            return self.inner.token_logits(moved, role, base=base, logits=logits)

        return self._by_image([sample.request for sample in samples], work)

    def _by_image(
        self, requests: Sequence[TextRequest], work: Callable[[Sequence[int], Sequence[TextRequest]], list[Result]]
    ) -> list[Result]:
        """Results in the order of ``requests``. ``work`` gets places in them, all of an image together, and the
        requests there about copies of their images, one copy an image, which end with the call."""
        places_of: dict[int, list[int]] = {}
        for place, request in enumerate(requests):
            places_of.setdefault(id(request.image), []).append(place)
        found: dict[int, Result] = {}
        for chunk in self._chunks(list(places_of.values())):
            places = [place for same in chunk for place in same]
            found.update(zip(places, work(places, _with_copies([requests[p] for p in places])), strict=True))
        return [found[place] for place in range(len(requests))]

    def prefill(self, images: Sequence[Image], roles: Sequence[Role | None]) -> None:
        """Nothing: a prefix of these images would stay in memory, and the copies of a chunk could not use it."""

    def generate(
        self, requests: Sequence[ImageRequest], sampling: ImageSampling, role: Role | None = Role.GENERATOR
    ) -> list[ImageSample]:
        """See Backbone."""
        return [sample for chunk in self._chunks(requests) for sample in self.inner.generate(chunk, sampling, role)]

    def embed(self, items: Sequence[Image | str]) -> Tensor:
        """See Backbone."""
        if not items:
            return self.inner.embed(items)
        return torch.cat([
            self.inner.embed([item if isinstance(item, str) else item.copy() for item in chunk])
            for chunk in self._chunks(items)
        ])  # fmt: skip

    def _chunks(self, items: Sequence[Item]) -> list[Sequence[Item]]:
        return [items[start : start + self._at_once] for start in range(0, len(items), self._at_once)]


def _with_copies(requests: Sequence[TextRequest]) -> list[TextRequest]:
    images = {id(request.image): request.image for request in requests}
    copies = {key: None if image is None else image.copy() for key, image in images.items()}
    return [replace(request, image=copies[id(request.image)]) for request in requests]
