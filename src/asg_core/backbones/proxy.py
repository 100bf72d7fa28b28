"""A backbone that passes every call on to another: the start of one that changes some of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from PIL.Image import Image
from torch import Tensor, nn

from asg_core.backbones.interface import (
    Backbone,
    GenerationLoss,
    ImageRequest,
    ImageSample,
    ImageSampling,
    Role,
    TextRequest,
    TextSample,
    TextSamplings,
    TokenLogits,
)


class BackboneProxy(Backbone):
    """Passes every call on to ``inner``; subclass it to change some.

    Args:
        inner: does the work.
    """

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
        self, requests: Sequence[TextRequest], sampling: TextSamplings, role: Role | None = Role.PROPOSER
    ) -> list[TextSample]:
        """See Backbone."""
        return self.inner.ask(requests, sampling, role)

    def solve(
        self, requests: Sequence[TextRequest], sampling: TextSamplings, role: Role | None = Role.SOLVER
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

    def prefill(self, images: Sequence[Image], roles: Sequence[Role | None]) -> None:
        """See Backbone."""
        self.inner.prefill(images, roles)

    def release_memory(self) -> None:
        """See Backbone."""
        self.inner.release_memory()

    @property
    def runs_compiled(self) -> bool:
        """See Backbone."""
        return self.inner.runs_compiled

    def as_drawn(self, request: ImageRequest, image: Image) -> ImageSample:
        """See Backbone."""
        return self.inner.as_drawn(request, image)

    def shardable(self) -> tuple[nn.Module, Sequence[nn.Module]] | None:
        """See Backbone."""
        return self.inner.shardable()

    def trainable(self, role: Role) -> Mapping[str, nn.Parameter]:
        """See Backbone."""
        return self.inner.trainable(role)

    def save_role(self, role: Role, directory: Path) -> None:
        """See Backbone."""
        self.inner.save_role(role, directory)

    def load_role(self, role: Role, directory: Path) -> None:
        """See Backbone."""
        self.inner.load_role(role, directory)
