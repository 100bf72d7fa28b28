"""One image file to one upright RGB image of bounded size, or a typed error that says what is wrong with the file."""

from __future__ import annotations

import os
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from asg_core.errors import ImageError

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"})
"""Names that count as images in a folder; upper case too."""

MAX_PIXELS = 100_000_000
"""Larger images are refused before anything is decoded (decompression bombs)."""

MAX_SIDE = 2048
"""The longer side, in pixels, that larger images are reduced to."""

_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")

# decoders are registered here, once, because files are opened from several threads
Image.init()

# what Pillow's decoders raise on damaged files
_DAMAGE = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    LookupError,
    TypeError,
    OverflowError,
    MemoryError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)


def open_image(path: Path, max_side: int = MAX_SIDE) -> Image.Image:
    """Decode a file: first frame, EXIF orientation applied, RGB, transparency on white, longer side <= ``max_side``.

    16-bit and floating point grey images are scaled to 8 bits, not clipped.

    Raises:
        ImageError: missing, empty, not an image, damaged, or more than :data:`MAX_PIXELS`; ``why`` is the reason.
    """
    with _opened(path) as image:
        # JPEG can be decoded at a fraction of its size when only a smaller image is wanted
        image.draft(None, (max_side, max_side))
        image.load()
        upright = _to_rgb(_upright(image))
        longest = max(upright.size)
        if longest > max_side:
            width, height = (max(1, round(side * max_side / longest)) for side in upright.size)
            upright = upright.resize((width, height), Image.Resampling.LANCZOS)
    upright.info.clear()
    return upright


def verify_image(path: Path) -> None:
    """Decode a file completely, as cheaply as its format allows. Raises ImageError as :func:`open_image` does."""
    with _opened(path) as image:
        image.draft(None, (1, 1))
        image.load()
        if image.mode not in ("RGB", "L"):
            _to_rgb(image)


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    try:
        if not path.is_file():
            raise FileNotFoundError("not a regular file" if path.exists() else "no such file, or a broken link")
        if os.path.getsize(path) == 0:
            raise ValueError("the file is empty")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path, formats=_FORMATS) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise ValueError(f"{image.width} x {image.height} pixels, more than {MAX_PIXELS}")
                yield image
    except _DAMAGE as error:
        raise ImageError(
            f"image {path} cannot be used",
            _reason(error),
            "replace the file by a readable JPEG, PNG, WebP, BMP, GIF or TIFF image",
        ) from error


def _reason(error: BaseException) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "not an image, or a damaged one"
    if isinstance(error, Image.DecompressionBombError):
        return f"more than {MAX_PIXELS} pixels"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split())[:200] or type(error).__name__


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith(("I", "F")):
        return Image.fromarray(_eight_bits(np.asarray(image))).convert("RGB")
    if image.has_transparency_data:
        opaque = Image.new("RGBA", image.size, "white")
        opaque.alpha_composite(image.convert("RGBA"))
        return opaque.convert("RGB")
    return image.convert("RGB")


def _upright(image: Image.Image) -> Image.Image:
    # a damaged EXIF block says nothing about the pixels, which are good
    with suppress(*_DAMAGE):
        return ImageOps.exif_transpose(image)
    return image


def _eight_bits(grey: np.ndarray) -> np.ndarray:
    """Grey levels as uint8: floats in [0, 1] times 255; integers above 255 are taken as 16-bit."""
    if not np.isfinite(grey).all():
        raise ValueError("grey levels are not finite")
    if grey.dtype.kind == "f" and grey.max() <= 1:
        top = 1
    else:
        top = 65535 if grey.dtype.itemsize == 2 or grey.max() > 255 else 255
    return np.clip(np.rint(grey.astype(np.float64) * (255 / top)), 0, 255).astype(np.uint8)
