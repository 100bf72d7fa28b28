"""Checks of ``embed``."""

from __future__ import annotations

import torch
from PIL.Image import Image

from asg_core.testing.conformance.check import check
from asg_core.testing.conformance.subject import Subject, close, picture
from asg_core.testing.conformance.violations import expect

_TEXTS = ("a red circle left of a blue square", "a dog")


@check(
    "embed.unit_vectors",
    "embeddings are finite float32 unit vectors in one space, in order, the same alone and in a batch",
    "normalise in float32 at the end; scatter pictures and texts back to their places; mask padding when pooling",
    "embed",
)
def _unit(subject: Subject) -> None:
    items: list[Image | str] = [_TEXTS[0], picture(1), _TEXTS[1], picture(2, 64, 24)]
    vectors = subject.backbone.embed(items)
    expect(vectors.dtype is torch.float32, f"embeddings are {vectors.dtype}, not float32")
    expect(vectors.ndim == 2 and len(vectors) == len(items), f"shape {tuple(vectors.shape)} for {len(items)} items")
    close("lengths", vectors.norm(dim=-1), torch.ones(len(items)), 1e-4)
    alone = torch.cat([subject.backbone.embed([item]) for item in items])
    close("in a batch against alone", vectors, alone, max(1e-4, subject.tolerance / 3))


@check(
    "embed.sees",
    "different pictures, and different texts, have different embeddings",
    "check that pixels reach the embedding and that pooling is not over constant positions",
    "embed",
)
def _sees(subject: Subject) -> None:
    kinds: dict[str, list[Image | str]] = {"pictures": [picture(1), picture(2)], "texts": list(_TEXTS)}
    for kind, items in kinds.items():
        a, b = subject.backbone.embed(items)
        expect(not torch.allclose(a, b, atol=1e-5), f"two different {kind} have the same embedding")


@check(
    "embed.base",
    "embeddings come from the base model, whatever the adapters hold",
    "run embed with all adapters off",
    "embed",
)
def _base(subject: Subject) -> None:
    items: list[Image | str] = [_TEXTS[0], picture(1)]
    expect(
        torch.equal(subject.backbone.embed(items), subject.fresh().embed(items)), "trained adapters change embeddings"
    )
