"""Which samples the report shows, and their images, small enough to inline.

Samples are chosen evenly over the run by position, never by result. With the limits below a report stays under
:data:`REPORT_BYTES` however long the run was.
"""

from __future__ import annotations

import base64
import io
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from PIL import Image, UnidentifiedImageError

from asg_core.method.prompts import FRAMINGS
from asg_core.runs.report.data import Record

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
"""Upper bound of report.html that these limits add up to."""


@dataclass(frozen=True)
class Thumbnail:
    """An inlined image: its data URI, size in pixels as shown in the original, and whether it is pixel art."""

    uri: str
    width: int
    height: int
    pixel_art: bool


@dataclass(frozen=True)
class Shown:
    """One sample of the gallery: its step and the item as written in samples/step-N.json."""

    step: Any
    item: Record


@dataclass(frozen=True)
class Selection:
    """The samples of one kind that are shown, out of ``total`` that were written."""

    shown: list[Shown]
    total: int


def select(samples: list[Record], kind: Literal["understanding", "generation"], limit: int) -> Selection:
    """At most ``limit`` items of one ``kind``, evenly spaced over all written ones, first and last included."""
    every = [
        Shown(sample.get("step"), item)
        for sample in samples
        if sample.get("kind") == kind
        for item in sample.get("items") or []
        if isinstance(item, dict)
    ]
    if len(every) <= limit:
        return Selection(every, len(every))
    picks = sorted({round(i * (len(every) - 1) / max(limit - 1, 1)) for i in range(limit)})
    return Selection([every[i] for i in picks], len(every))


def thumbnail(samples_folder: Path, name: object) -> Thumbnail | None:
    """The image ``name`` (relative to the samples folder) ready to inline; None if missing, damaged or outside it."""
    if not isinstance(name, str):
        return None
    root = samples_folder.resolve()
    try:
        path = Path(os.path.realpath(root / name))
        if not path.is_relative_to(root):
            return None
        with Image.open(path) as opened:
            image = opened.convert("RGB")
    except (OSError, ValueError, SyntaxError, UnidentifiedImageError, Image.DecompressionBombError):
        return None
    width, height = image.size
    if max(width, height) <= PIXEL_ART_SIDE:
        return Thumbnail(_uri(image, "PNG"), width, height, pixel_art=True)
    image.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
    uri = ""
    for quality in (82, 65, 45, 25):
        uri = _uri(image, "JPEG", quality=quality)
        if len(uri) * 3 // 4 <= THUMBNAIL_BYTES:
            break
    return Thumbnail(uri, width, height, pixel_art=False)


def _uri(image: Image.Image, encoding: Literal["PNG", "JPEG"], **options: int) -> str:
    buffer = io.BytesIO()
    image.save(buffer, encoding, optimize=True, **options)
    return f"data:image/{encoding.lower()};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


def framing_number(framing: object, position: int) -> int:
    """1-based number of a framing given as its text or its 0-based index; ``position`` + 1 for anything else."""
    if isinstance(framing, str) and framing in FRAMINGS:
        return FRAMINGS.index(framing) + 1
    if isinstance(framing, int) and not isinstance(framing, bool):
        return framing + 1
    return position + 1
