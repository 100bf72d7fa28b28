"""The exact reader of pictures made of the world's patches. Ground truth: for evaluation only."""

from __future__ import annotations

import numpy as np
from PIL import Image

from asg_core.tiny.world import CELL, GRID, PIXELS, Scene, codebook, codes_scene


def read_codes(image: Image.Image) -> list[int]:
    """The nearest codebook entry of each of the 16 cells (squared pixel distance); exact for pictures of codes.

    Raises:
        ValueError: the image is not 32 x 32.
    """
    if image.size != (PIXELS, PIXELS):
        raise ValueError(f"the detector reads {PIXELS} x {PIXELS} images, not {image.size[0]} x {image.size[1]}")
    cells = np.asarray(image.convert("RGB"), dtype=np.float64).reshape(GRID, CELL, GRID, CELL, 3)
    cells = cells.transpose(0, 2, 1, 3, 4).reshape(GRID * GRID, 1, -1)
    entries = codebook().reshape(1, len(codebook()), -1)
    return [int(code) for code in ((cells - entries) ** 2).sum(-1).argmin(-1)]


def read_scene(image: Image.Image) -> Scene:
    """What a 32 x 32 picture shows."""
    return codes_scene(read_codes(image))
