"""The vision tower: pictures in one pass are what they are alone, and those of equal area attend as one batch."""

from __future__ import annotations

from collections.abc import Callable
from unittest import mock

import pytest
import torch
from asg_vargpt.backbone import VargptBackbone
from asg_vargpt.processing import patches_of
from PIL import Image
from torch.nn import functional as F

Picture = Callable[..., Image.Image]
BLOCKS = 2


def calls(backbone: VargptBackbone, images: list[Image.Image]) -> int:
    """Calls of attention while the tower sees ``images``."""
    with mock.patch.object(F, "scaled_dot_product_attention", wraps=F.scaled_dot_product_attention) as attention:
        backbone.text.encode_images(images)
    return attention.call_count


def test_pictures_seen_together_are_what_the_stock_tower_sees_alone(
    backbone: VargptBackbone, picture: Picture, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = [picture(1, 120, 60), picture(2), picture(3, 120, 60), picture(4, 112, 56)]
    together = backbone.text.encode_images(images)
    tower = backbone.model.visual
    monkeypatch.setattr(tower.config, "_attn_implementation", "sdpa")
    for image, (found, grid) in zip(images, together, strict=True):
        patches, sizes = patches_of(backbone.text.processor, [image])
        assert [2 * side for side in grid] == sizes[0, 1:].tolist()
        torch.testing.assert_close(found, tower(patches, grid_thw=sizes).pooler_output, atol=2e-5, rtol=1e-5)


def test_24_candidates_take_the_calls_of_one(backbone: VargptBackbone, picture: Picture) -> None:
    assert calls(backbone, [picture(0, 120, 60)]) == BLOCKS
    assert calls(backbone, [picture(seed, 120, 60) for seed in range(24)]) == BLOCKS
    mixed = [picture(seed, *size) for seed, size in enumerate([(120, 60), (56, 56), (60, 120)])]
    assert calls(backbone, mixed) == 2 * BLOCKS
