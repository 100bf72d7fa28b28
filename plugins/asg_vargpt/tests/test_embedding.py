"""Embeddings for cycle consistency."""

from __future__ import annotations

from collections.abc import Callable

import torch
from asg_vargpt.backbone import VargptBackbone
from PIL import Image

from asg_core.backbones.interface import Role


def test_unit_vectors_that_depend_on_the_item_and_on_no_adapter(
    awake: VargptBackbone, backbone: VargptBackbone, picture: Callable[..., Image.Image]
) -> None:
    items = [picture(0), picture(1), "a red kite", "a boat"]
    vectors = awake.embed(items)
    assert vectors.shape == (4, awake.model.hidden_size)
    assert vectors.dtype == torch.float32
    assert torch.allclose(vectors.norm(dim=1), torch.ones(4), atol=1e-5)
    assert float((vectors @ vectors.T - torch.eye(4)).max()) < 0.999
    assert torch.equal(vectors, backbone.embed(items))
    with awake.adapters.use(Role.SOLVER):
        assert torch.equal(vectors, awake.embed(items))


def test_a_batch_equals_its_singles(awake: VargptBackbone, picture: Callable[..., Image.Image]) -> None:
    items = [picture(0), "a red kite", picture(3, 30, 40)]
    together = awake.embed(items)
    for row, item in enumerate(items):
        assert torch.allclose(awake.embed([item])[0], together[row], atol=1e-5)
    assert awake.embed([]).shape == (0, awake.model.hidden_size)
