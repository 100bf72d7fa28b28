"""Images to tensors: the understanding path (Qwen2-VL patches) and the square input of the EVA-CLIP tower."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL.Image import Image, Resampling
from torch import Tensor
from transformers import Qwen2VLImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

from asg_core.errors import ImageError, WeightsError


@dataclass(frozen=True)
class Patches:
    """Patches of one image: ``pixels`` (t*h*w, channels*temporal*patch*patch), ``grid`` (t, h, w) before merging."""

    pixels: Tensor
    grid: tuple[int, int, int]


class ImagePatches:
    """The stock Qwen2-VL processor (its PIL form, bit-equal to the original) behind a size clamp.

    Args:
        folder: a release; its ``preprocessor_config.json`` is used when there, else the stock values with the
            original's pixel limits.
        min_side, max_side: pixels, the clamp of :func:`clamp_size`.
    """

    def __init__(self, folder: Path, min_side: int, max_side: int) -> None:
        self.min_side, self.max_side = min_side, max_side
        try:
            if (folder / "preprocessor_config.json").is_file():
                self.processor = Qwen2VLImageProcessorPil.from_pretrained(folder)
            else:
                self.processor = Qwen2VLImageProcessorPil(size={"shortest_edge": 56 * 56, "longest_edge": 12845056})
        except (OSError, ValueError) as error:
            raise WeightsError(
                f"{folder / 'preprocessor_config.json'} cannot be used",
                str(error),
                "download it from the release again",
            ) from error

    @property
    def multiple(self) -> int:
        """Side of one language-model token in pixels."""
        return int(self.processor.patch_size * self.processor.merge_size)

    def resize(self, image: Image) -> Image:
        """RGB image at the clamped size, bicubic."""
        size = clamp_size(*image.size, self.min_side, self.max_side, self.multiple)
        rgb = image.convert("RGB")
        return rgb if size == rgb.size else rgb.resize(size, Resampling.BICUBIC)

    def target_size(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) that the stock processor resizes to.

        Raises:
            ImageError: one side is over 200 times the other.
        """
        size = self.processor.size
        try:
            resized = smart_resize(height, width, self.multiple, size["shortest_edge"], size["longest_edge"])
        except ValueError as error:
            raise ImageError(
                f"an image of {width}x{height} pixels cannot be shown", str(error), "leave it out"
            ) from error
        return int(resized[0]), int(resized[1])

    def patches(self, image: Image) -> Patches:
        """Patches of an RGB image as it is (no clamp), float32. Raises ImageError for an extreme aspect ratio."""
        self.target_size(image.height, image.width)
        made = self.processor(images=[image], return_tensors="pt")
        t, h, w = (int(n) for n in made["image_grid_thw"][0])
        return Patches(made["pixel_values"], (t, h, w))

    def __call__(self, images: Sequence[Image]) -> list[Patches]:
        """Clamp, then patches, of each image."""
        return [self.patches(self.resize(image)) for image in images]


def clamp_size(width: int, height: int, min_side: int, max_side: int, multiple: int) -> tuple[int, int]:
    """(width, height) in pixels after the clamp of the original trainer.

    Scaled down to ``max_side`` on the long side, or up to ``min_side`` on the short side, then both sides floored to
    a multiple of ``multiple`` (at least one): the aspect ratio may change slightly.
    """
    scale = 1.0
    if max(width, height) > max_side:
        scale = max_side / max(width, height)
    elif min(width, height) < min_side:
        scale = min_side / min(width, height)

    def floored(side: int) -> int:
        return max(multiple, round(side * scale) // multiple * multiple)

    return floored(width), floored(height)


def eva_pixels(images: Sequence[Image], side: int, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """(B, 3, side, side) float32 input of the EVA-CLIP tower.

    Short side to ``side`` (bicubic), centre crop, scale to [0, 1], normalise per channel with ``mean`` and ``std``.
    The crop loses the ends of elongated images.
    """
    rows = []
    for image in images:
        rgb = image.convert("RGB")
        short = min(rgb.size)
        width, height = (side if edge == short else int(side * edge / short) for edge in rgb.size)
        resized = rgb.resize((width, height), Resampling.BICUBIC)
        left, top = round((width - side) / 2), round((height - side) / 2)
        cropped = np.asarray(resized.crop((left, top, left + side, top + side)))
        rows.append(torch.from_numpy(cropped.copy()).permute(2, 0, 1))
    scaled = torch.stack(rows).float() / 255
    return (scaled - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
