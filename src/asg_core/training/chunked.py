"""A step with fewer of its images in memory at once: ``optimizer.micro_batch=auto``, once memory has run out.

A batch equals its singles and a seed belongs to a sample, so chunks change no result beyond float rounding. That tips
hardly a token in float32; in bfloat16 it tips some, and results are the same in distribution only. Chunks cost time:
smaller batches, and an image that is read again in every call, because nothing of a chunk is kept for the next.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

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
from asg_core.config.schema import RunConfig
from asg_core.method.records import Kind


def images_in_step(kind: Kind, config: RunConfig) -> int:
    """The most images that one call of a step works on: those of the pool, or all candidates."""
    if kind == "understanding":
        return config.images_per_step
    return config.generate.prompts_per_step * config.generate.candidates


def in_chunks(backbone: Backbone, at_once: int) -> Backbone:
    """``backbone`` itself if ``at_once`` is 0, else :class:`Chunked` of it."""
    return Chunked(backbone, at_once) if at_once else backbone


class Chunked(BackboneProxy):
    """``backbone``, whose calls see at most ``at_once`` distinct images, drawings or texts at a time; results in order.

    What a backbone keeps of an image (features, prefixes) lives as long as the image object. So each chunk gets
    copies, and what was kept of them goes with the chunk. ``generation_loss`` is not divided: the update of the
    Generator accumulates gradients itself.

    Args:
        backbone: does the work.
        at_once: >= 1.
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
        found: dict[int, TextSample] = {}

        def work(places: Sequence[int]) -> None:  # a function, so that its copies end with it
            samples = call(_with_copies([requests[place] for place in places]), [each[place] for place in places], role)
            for place, sample in zip(places, samples, strict=True):
                found[place] = replace(sample, request=requests[place])

        for places in self._by_image(requests):
            work(places)
        return [found[place] for place in range(len(requests))]

    def token_logits(
        self, samples: Sequence[TextSample], role: Role | None, *, base: bool = False, logits: bool = False
    ) -> list[TokenLogits]:
        """See Backbone."""
        requests = [sample.request for sample in samples]
        found: dict[int, TokenLogits] = {}

        def work(places: Sequence[int]) -> None:
            shown = _with_copies([requests[place] for place in places])
            moved = [replace(samples[place], request=request) for place, request in zip(places, shown, strict=True)]
            scores = self.inner.token_logits(moved, role, base=base, logits=logits)
            found.update(zip(places, scores, strict=True))

        for places in self._by_image(requests):
            work(places)
        return [found[place] for place in range(len(samples))]

    def _by_image(self, requests: Sequence[TextRequest]) -> Iterator[list[int]]:
        """Places of requests, all of an image together."""
        places_of: dict[int, list[int]] = {}
        for place, request in enumerate(requests):
            places_of.setdefault(id(request.image), []).append(place)
        of_image = list(places_of.values())
        for start in range(0, len(of_image), self._at_once):
            yield [place for places in of_image[start : start + self._at_once] for place in places]

    def prefill(self, images: Sequence[Image], roles: Sequence[Role | None]) -> None:
        """Nothing: a prefix of these images would stay in memory, and the copies of a chunk could not use it."""

    def generate(
        self, requests: Sequence[ImageRequest], sampling: ImageSampling, role: Role | None = Role.GENERATOR
    ) -> list[ImageSample]:
        """See Backbone."""
        starts = range(0, len(requests), self._at_once)
        return [
            sample
            for start in starts
            for sample in self.inner.generate(requests[start : start + self._at_once], sampling, role)
        ]

    def embed(self, items: Sequence[Image | str]) -> Tensor:
        """See Backbone."""
        chunks = [items[start : start + self._at_once] for start in range(0, len(items), self._at_once)]
        if not chunks:
            return self.inner.embed(items)
        return torch.cat([
            self.inner.embed([item if isinstance(item, str) else item.copy() for item in chunk])
            for chunk in chunks
        ])  # fmt: skip


def _with_copies(requests: Sequence[TextRequest]) -> list[TextRequest]:
    """The same requests about copies of their images, one copy an image."""
    images = {id(request.image): request.image for request in requests}
    copies = {key: None if image is None else image.copy() for key, image in images.items()}
    return [replace(request, image=copies[id(request.image)]) for request in requests]
