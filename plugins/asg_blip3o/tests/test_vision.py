"""The vision tower: pictures in one pass are what they are alone, and attention is called for lengths, not windows."""

from __future__ import annotations

from collections.abc import Callable
from unittest import mock

import pytest
import torch
from asg_blip3o.backbone import Blip3oBackbone
from PIL import Image
from torch.nn import functional as F

Picture = Callable[..., Image.Image]


def features(backbone: Blip3oBackbone, images: list[Image.Image]) -> list[torch.Tensor]:
    return backbone.text.image_features(backbone.text.patches(images))


def calls(backbone: Blip3oBackbone, images: list[Image.Image]) -> int:
    """Calls of attention while the tower sees ``images``."""
    with mock.patch.object(F, "scaled_dot_product_attention", wraps=F.scaled_dot_product_attention) as attention:
        features(backbone, images)
    return attention.call_count


def test_pictures_seen_together_are_what_the_stock_tower_sees_alone(
    backbone: Blip3oBackbone, picture: Picture, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = [picture(1, 200, 120), picture(2), picture(3, 200, 120), picture(4, 112, 112)]
    together = features(backbone, images)
    tower = backbone.model.vlm.model.visual
    monkeypatch.setattr(tower.config, "_attn_implementation", "sdpa")
    for image, found in zip(images, together, strict=True):
        (patches,) = backbone.text.patches([image])
        alone = tower(patches.pixels, grid_thw=torch.tensor([patches.grid])).pooler_output
        torch.testing.assert_close(found, alone, atol=2e-5, rtol=1e-5)


def test_24_candidates_take_the_calls_of_one(backbone: Blip3oBackbone, picture: Picture) -> None:
    """The first block of this checkpoint has windows of 4 x 4 patches, the second attends to whole pictures."""
    even, ragged = (112, 224), (140, 220)
    assert calls(backbone, [picture(0, *even)]) == 2
    assert calls(backbone, [picture(0, *ragged)]) == 3 + 1  # 16, 8 and 4 patches
    for size, expected in ((even, 2), (ragged, 4)):
        assert calls(backbone, [picture(seed, *size) for seed in range(24)]) == expected
