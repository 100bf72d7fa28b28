"""Which samples the report shows, and their images, small enough to inline.

Samples are chosen evenly over the run by position, never by result.
"""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Literal, NamedTuple

from PIL import Image

from asg_core.data.image_file import open_image
from asg_core.errors import ImageError
from asg_core.runs.folder import Record
from asg_core.runs.report.formats import data_uri

UNDERSTANDING_ITEMS = 10
"""Most images of understanding steps shown."""
GENERATION_ITEMS = 6
"""Most specs of generation steps shown."""
MEMBERS = 8
"""Most questions of one image and most candidates of one spec shown."""
PIXEL_ART_SIDE = 64
"""Images up to this side, in pixels, are upscaled with hard edges."""
THUMBNAIL_SIDE = 320
"""Larger images are reduced to this side, in pixels."""
THUMBNAIL_BYTES = 48 * 1024
"""Encoded size that a thumbnail's quality is lowered to meet."""
REPORT_BYTES = 8 * 2**20
"""Upper bound of report.html that these limits add up to, however long the run was."""


class Thumbnail(NamedTuple):
    """An inlined image: its data URI, size in pixels as shown in the original, and whether it is pixel art."""

    uri: str
    width: int
    height: int
    pixel_art: bool


def items_of(samples: list[Record], kind: Literal["understanding", "generation"]) -> list[Record]:
    """Every item of one ``kind`` as written in samples/step-N.json, and with it its step."""
    return [
        item | {"step": sample.get("step")}
        for sample in samples
        if sample.get("kind") == kind
        for item in sample.get("items") or []
        if isinstance(item, dict)
    ]


def evenly(items: list[Record], limit: int) -> list[Record]:
    """At most ``limit`` >= 2 of the ``items``, evenly spaced, first and last included."""
    if len(items) <= limit:
        return items
    return [items[round(i * (len(items) - 1) / (limit - 1))] for i in range(limit)]


def thumbnail(samples_folder: Path, name: object) -> Thumbnail | None:
    """The image ``name`` (relative to the samples folder) ready to inline; None if missing, damaged or outside it."""
    try:
        path = Path(os.path.realpath(samples_folder / str(name)))
        if not path.is_relative_to(samples_folder.resolve()):
            return None
        image = open_image(path)
    except (ValueError, ImageError):
        return None
    width, height = image.size
    if max(width, height) <= PIXEL_ART_SIDE:
        return Thumbnail(_uri(image, "PNG"), width, height, pixel_art=True)
    image.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
    for quality in (82, 65, 45, 25):
        uri = _uri(image, "JPEG", quality=quality)
        if len(uri) * 3 // 4 <= THUMBNAIL_BYTES:
            break
    return Thumbnail(uri, width, height, pixel_art=False)


def _uri(image: Image.Image, encoding: Literal["PNG", "JPEG"], **options: int) -> str:
    buffer = io.BytesIO()
    image.save(buffer, encoding, optimize=True, **options)
    return data_uri(buffer.getvalue(), f"image/{encoding.lower()}")
