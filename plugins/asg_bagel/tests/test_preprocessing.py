"""Colour conversion and the corners of the resize rule; the recorded table is in the parity replay."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

from asg_bagel.modeling_vision import grid_positions
from asg_bagel.processing import ResizeRule, to_patches, to_pixels, to_rgb


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_is_laid_over_white(mode: str) -> None:
    image = Image.new("RGBA", (2, 1), (10, 10, 10, 255))
    image.putpixel((1, 0), (10, 10, 10, 0))
    if mode == "P":
        converted = Image.new("P", (2, 1), 0)
        converted.putpalette([10, 10, 10, 200, 0, 0])
        converted.putpixel((1, 0), 1)
        converted.info["transparency"] = 1
    else:
        converted = image.convert(mode)
    assert [to_rgb(converted).getpixel((x, 0)) for x in (0, 1)] == [(10, 10, 10), (255, 255, 255)]


def test_half_transparency_is_mixed_with_white() -> None:
    assert to_rgb(Image.new("RGBA", (1, 1), (0, 0, 0, 51))).getpixel((0, 0)) == (204, 204, 204)


@pytest.mark.parametrize("mode", ["L", "CMYK", "1", "I;16"])
def test_other_modes_become_rgb(mode: str) -> None:
    assert to_rgb(Image.new(mode, (3, 2))).mode == "RGB"


def test_the_long_side_wins_over_the_short_side() -> None:
    assert ResizeRule(980, 224, 14).size(4000, 300) == (980, 70)


def test_too_large_an_area_shrinks_by_the_ratio_of_areas() -> None:
    rule = ResizeRule(100, 10, 10, max_pixels=5000)
    assert rule.size(100, 100) == (50, 50)


def test_patches_run_row_column_colour() -> None:
    pixels = torch.arange(3 * 4 * 4).reshape(3, 4, 4).float()
    patches = to_patches(pixels, 2)
    assert patches.shape == (4, 12)
    assert patches[1].tolist() == [p for y, x in ((0, 2), (0, 3), (1, 2), (1, 3)) for p in pixels[:, y, x].tolist()]


def test_pixels_span_minus_one_to_one() -> None:
    image = Image.new("RGB", (2, 1), (0, 0, 0))
    image.putpixel((1, 0), (255, 255, 255))
    assert to_pixels(image).unique().tolist() == [-1.0, 1.0]


def test_positions_sit_in_the_top_left_corner() -> None:
    assert grid_positions(2, 3, 10, torch.device("cpu")).tolist() == [0, 1, 2, 10, 11, 12]
