"""The plain sequential way to take a step, for comparison: one request per call, nothing kept between calls.

Wrap a backbone in :class:`OneByOne` and every call becomes as many calls as it has requests; each image is a fresh
copy, so that neither vision features nor prefilled prefixes of an earlier call are found. The numbers are the same: a
result depends on its request and seed, not on what else is in the batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import torch
from PIL.Image import Image
from torch import Tensor, nn

from asg_core.roles import (
    Backbone,
    GenerationLoss,
    ImageRequest,
    ImageSample,
    ImageSampling,
    Role,
    TextRequest,
    TextSample,
    TextSampling,
    TokenLogits,
)

T = TypeVar("T")


class Wrapped(Backbone):
    """Passes every call on to ``inner``; subclass it to change some."""

    def __init__(self, inner: Backbone) -> None:
        self.inner = inner
        self.manifest = inner.manifest

    @property
    def device(self) -> torch.device:
        """Of ``inner``."""
        return self.inner.device

    @property
    def dtype(self) -> torch.dtype:
        """Of ``inner``."""
        return self.inner.dtype

    def ask(
        self, requests: Sequence[TextRequest], sampling: TextSampling, role: Role | None = Role.PROPOSER
    ) -> list[TextSample]:
        """See Backbone."""
        return self.inner.ask(requests, sampling, role)

    def solve(
        self, requests: Sequence[TextRequest], sampling: TextSampling, role: Role | None = Role.SOLVER
    ) -> list[TextSample]:
        """See Backbone."""
        return self.inner.solve(requests, sampling, role)

    def token_logits(
        self, samples: Sequence[TextSample], role: Role | None, *, base: bool = False, logits: bool = False
    ) -> list[TokenLogits]:
        """See Backbone."""
        return self.inner.token_logits(samples, role, base=base, logits=logits)

    def generate(
        self, requests: Sequence[ImageRequest], sampling: ImageSampling, role: Role | None = Role.GENERATOR
    ) -> list[ImageSample]:
        """See Backbone."""
        return self.inner.generate(requests, sampling, role)

    def generation_loss(self, samples: Sequence[ImageSample], noise_seeds: Sequence[int]) -> GenerationLoss:
        """See Backbone."""
        return self.inner.generation_loss(samples, noise_seeds)

    def embed(self, items: Sequence[Image | str]) -> Tensor:
        """See Backbone."""
        return self.inner.embed(items)

    def trainable(self, role: Role) -> Mapping[str, nn.Parameter]:
        """See Backbone."""
        return self.inner.trainable(role)

    def save_role(self, role: Role, directory: Path) -> None:
        """See Backbone."""
        self.inner.save_role(role, directory)

    def load_role(self, role: Role, directory: Path) -> None:
        """See Backbone."""
        self.inner.load_role(role, directory)


class OneByOne(Wrapped):
    """One request per call of ``inner``, each with its own copy of the image."""

    def ask(
        self, requests: Sequence[TextRequest], sampling: TextSampling, role: Role | None = Role.PROPOSER
    ) -> list[TextSample]:
        """See Backbone."""
        return [replace(self.inner.ask([_alone(r)], sampling, role)[0], request=r) for r in requests]

    def solve(
        self, requests: Sequence[TextRequest], sampling: TextSampling, role: Role | None = Role.SOLVER
    ) -> list[TextSample]:
        """See Backbone."""
        return [replace(self.inner.solve([_alone(r)], sampling, role)[0], request=r) for r in requests]

    def token_logits(
        self, samples: Sequence[TextSample], role: Role | None, *, base: bool = False, logits: bool = False
    ) -> list[TokenLogits]:
        """See Backbone."""
        return [
            self.inner.token_logits([replace(s, request=_alone(s.request))], role, base=base, logits=logits)[0]
            for s in samples
        ]

    def generate(
        self, requests: Sequence[ImageRequest], sampling: ImageSampling, role: Role | None = Role.GENERATOR
    ) -> list[ImageSample]:
        """See Backbone."""
        return [self.inner.generate([request], sampling, role)[0] for request in requests]

    def generation_loss(self, samples: Sequence[ImageSample], noise_seeds: Sequence[int]) -> GenerationLoss:
        """See Backbone."""
        parts = [self.inner.generation_loss([s], [seed]) for s, seed in zip(samples, noise_seeds, strict=True)]
        tokens = [part.token_logprobs[0] for part in parts if part.token_logprobs is not None]
        return GenerationLoss(
            torch.cat([part.loss for part in parts]),
            torch.cat([part.penalty for part in parts]),
            nn.utils.rnn.pad_sequence(tokens, batch_first=True) if tokens else None,
        )

    def embed(self, items: Sequence[Image | str]) -> Tensor:
        """See Backbone."""
        return torch.cat([self.inner.embed([item if isinstance(item, str) else item.copy()]) for item in items])


def separate(groups: Sequence[Sequence[T]]) -> list[list[T]]:
    """Groups of one: with ``micro_batch=1`` each sample has its own backward pass; the summed loss stays the same."""
    return [[member] for group in groups for member in group]


def _alone(request: TextRequest) -> TextRequest:
    return request if request.image is None else replace(request, image=request.image.copy())
