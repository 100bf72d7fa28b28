"""The plain sequential way to take a step, for comparison: one request per call, nothing kept between calls.

Wrap a backbone in :class:`OneByOne` and every call becomes as many calls as it has requests; each image is a fresh
copy, so that neither vision features nor prefilled prefixes of an earlier call are found. The numbers are the same: a
result depends on its request and seed, not on what else is in the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from PIL.Image import Image
from torch import Tensor, nn

from asg_core.backbones.interface import (
    GenerationLoss,
    ImageRequest,
    ImageSample,
    ImageSampling,
    Role,
    TextRequest,
    TextSample,
    TextSamplings,
    TokenLogits,
    broadcast_sampling,
)
from asg_core.backbones.proxy import BackboneProxy
from asg_core.method.updates import Group


class OneByOne(BackboneProxy):
    """One request per call of ``inner``, each with its own copy of the image."""

    def ask(
        self, requests: Sequence[TextRequest], sampling: TextSamplings, role: Role | None = Role.PROPOSER
    ) -> list[TextSample]:
        """See Backbone."""
        each = zip(requests, broadcast_sampling(sampling, len(requests)), strict=True)
        return [replace(self.inner.ask([_alone(r)], how, role)[0], request=r) for r, how in each]

    def solve(
        self, requests: Sequence[TextRequest], sampling: TextSamplings, role: Role | None = Role.SOLVER
    ) -> list[TextSample]:
        """See Backbone."""
        each = zip(requests, broadcast_sampling(sampling, len(requests)), strict=True)
        return [replace(self.inner.solve([_alone(r)], how, role)[0], request=r) for r, how in each]

    def prefill(self, images: Sequence[Image], roles: Sequence[Role | None]) -> None:
        """Nothing: whoever keeps nothing need not read ahead."""

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


def separate(groups: Sequence[Group]) -> list[Group]:
    """Groups of one: with ``micro_batch=1`` each sample has its own backward pass; the summed loss stays the same."""
    return [Group([member], group.mine) for group in groups for member in group.samples]


def _alone(request: TextRequest) -> TextRequest:
    return request if request.image is None else replace(request, image=request.image.copy())
