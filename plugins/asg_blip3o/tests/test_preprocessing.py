"""Image sizes and crops, beyond the recorded cases."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from asg_blip3o.backbone import Blip3oBackbone
from asg_blip3o.processing import clamp_size, eva_pixels
from asg_blip3o.text import image_positions
from PIL import Image

from asg_core.backbones.interface import TextRequest, TextSampling
from asg_core.errors import ImageError


@pytest.mark.parametrize(
    ("size", "clamped"),
    [
        ((60, 88), (56, 84)),  # between the limits: only floored to 28
        ((2048, 1024), (1024 // 28 * 28, 512 // 28 * 28)),  # long side down to 1024
        ((28, 100), (56, 200 // 28 * 28)),  # short side up to 56
        ((10, 3000), (28, 1008)),  # the long side decides, the short one keeps one token
        ((1024, 1024), (1008, 1008)),
    ],
)
def test_clamp(size: tuple[int, int], clamped: tuple[int, int]) -> None:
    assert clamp_size(*size, 56, 1024, 28) == clamped


def test_image_tokens_count_row_and_column_and_move_the_counter_by_the_longer_side() -> None:
    positions, advance = image_positions((1, 4, 6), 2)
    assert positions.tolist() == [[0] * 6, [0, 0, 0, 1, 1, 1], [0, 1, 2, 0, 1, 2]]
    assert advance == 3


def test_the_tower_sees_the_centre_square_at_full_short_side() -> None:
    stripes = np.zeros((20, 60, 3), dtype=np.uint8)
    stripes[:, 20:40] = 255  # white exactly in the centre square
    pixels = eva_pixels([Image.fromarray(stripes)], 10, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    assert pixels.shape == (1, 3, 10, 10)
    assert torch.allclose(pixels[..., 2:8], torch.ones(1, 3, 10, 6), atol=0.05)


def test_an_extreme_image_is_a_typed_error(backbone: Blip3oBackbone) -> None:
    narrow = Image.new("RGB", (1, 300))
    with pytest.raises(ImageError, match="1x300"):
        backbone.text.patches.patches(narrow)


def test_any_mode_and_size_of_image_can_be_shown(backbone: Blip3oBackbone) -> None:
    shown = [Image.new("L", (5, 5)), Image.new("RGBA", (200, 31)), Image.new("RGB", (1300, 40))]
    samples = backbone.solve([TextRequest("What?", image, 1) for image in shown], TextSampling(2))
    assert all(np.isfinite(sample.logprobs).all() for sample in samples)
