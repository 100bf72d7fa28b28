"""Backbones whose embeddings measure nothing, or move as roles learn."""

from __future__ import annotations

from asg_core.backbones.interface import Role
from asg_core.tiny.backbone import TinyBackbone

from .registry import caught_by


@caught_by("embed.sees")
class BlindEmbedding(TinyBackbone):
    """Every picture has one embedding."""

    def _embed_pictures(self, pictures):
        return super()._embed_pictures([picture.copy().resize((1, 1)).point(lambda _: 0) for picture in pictures])


@caught_by("embed.base")
class EvolvingEmbedding(TinyBackbone):
    """Embeds with the Solver's adapter on."""

    def embed(self, items):
        use = self.adapters.use
        self.adapters.use = lambda role: use(Role.SOLVER)
        try:
            return super().embed(items)
        finally:
            self.adapters.use = use


@caught_by("embed.unit_vectors")
class UnnormalisedEmbedding(TinyBackbone):
    """Embeddings of any length."""

    def embed(self, items):
        return 2 * super().embed(items)
