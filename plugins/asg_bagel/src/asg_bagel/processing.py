"""Pixels in: colour, the resize rule, and patches. Plain PIL and torch; the same numbers as upstream's transforms."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

MAX_PIXELS = 14 * 14 * 9 * 1024


@dataclass(frozen=True)
class ResizeRule:
    """How an image's size is chosen, in pixels.

    Attributes:
        longest: the long side is at most this.
        shortest: the short side is at least this, unless that would break ``longest``.
        stride: both sides become multiples of it.
        max_pixels: area above which the image is shrunk again.
    """

    longest: int
    shortest: int
    stride: int
    max_pixels: int = MAX_PIXELS

    def size(self, width: int, height: int) -> tuple[int, int]:
        """(width, height) of the resized image.

        The aspect ratio is kept only up to the stride. The area rule multiplies both sides by the *ratio of areas*, not
        its root, so it shrinks more than needed; upstream's models were trained with it.
        """
        scale = max(min(self.longest / max(width, height), 1.0), self.shortest / min(width, height))
        width, height = self._snap(width, scale), self._snap(height, scale)
        if width * height > self.max_pixels:
            scale = self.max_pixels / (width * height)
            width, height = self._snap(width, scale), self._snap(height, scale)
        if max(width, height) > self.longest:
            scale = self.longest / max(width, height)
            width, height = self._snap(width, scale), self._snap(height, scale)
        return width, height

    def _snap(self, side: int, scale: float) -> int:
        return max(self.stride, round(round(side * scale) / self.stride) * self.stride)

    def resize(self, image: Image.Image) -> Image.Image:
        """The RGB image at its new size, bicubic with PIL's antialiasing."""
        image = to_rgb(image)
        return image.resize(self.size(*image.size), Image.Resampling.BICUBIC)


def to_rgb(image: Image.Image) -> Image.Image:
    """RGB; transparent parts (alpha channel or palette transparency) are laid over white."""
    if image.mode == "RGB":
        return image
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        layered = image.convert("RGBA")
        canvas = Image.new("RGB", image.size, (255, 255, 255))
        canvas.paste(layered, mask=layered.getchannel("A"))
        return canvas
    return image.convert("RGB")


def to_pixels(image: Image.Image) -> Tensor:
    """RGB image -> (3, H, W) float32 in [-1, 1]."""
    array = torch.from_numpy(np.array(image, dtype=np.uint8))
    return (array.permute(2, 0, 1).float() / 255 - 0.5) / 0.5


def to_patches(pixels: Tensor, patch: int) -> Tensor:
    """(3, h p, w p) -> (h w, p p 3): patches row-major, each as (row, column, colour), colour fastest."""
    channels, height, width = pixels.shape
    cells = pixels.view(channels, height // patch, patch, width // patch, patch)
    return cells.permute(1, 3, 2, 4, 0).reshape(-1, patch * patch * channels)
