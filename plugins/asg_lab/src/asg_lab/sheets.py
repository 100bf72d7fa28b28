"""Drawing the images of a layout: in batches over prompts, resumable, one protocol for a folder.

A file counts once it has its final name; it is written aside and renamed, so a killed run leaves no half of one. What
is there already is not drawn again, and since a seed belongs to a sample, it does not matter when a file was drawn.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from PIL import Image

from asg_core.backbones.interface import Backbone, ImageRequest, ImageSampling, Role
from asg_core.errors import CapabilityError
from asg_core.evaluation.protocol import FILE, Protocol, ProtocolError, differences, read_protocols, record_protocol
from asg_core.runs.folder import fsync_path
from asg_lab.layouts import IMAGES, Sheet

SCORE = "images"
"""Name of a drawn folder's entry in its protocol.json."""


def claim_folder(out: Path, protocol: Protocol) -> None:
    """Record the protocol of the images below ``out``, or check that those already there were drawn under it.

    Raises:
        ProtocolError: the folder holds images of another model or protocol, or of one that is not known.
    """
    known = read_protocols(out).get(SCORE)
    if known is None:
        if (out / IMAGES).exists():
            raise ProtocolError(
                f"{out} holds images already",
                f"it has no {FILE} that says how they were drawn",
                "choose another folder with --out",
            )
        out.mkdir(parents=True, exist_ok=True)
        record_protocol(out, SCORE, protocol)
        return
    found = differences(known, protocol, ("written",))
    if found:
        raise ProtocolError(
            f"{out} holds images of another model or protocol",
            f"{len(found)} values differ (there / now):\n    " + "\n    ".join(found),
            "go on with the settings it was begun with, or choose another folder with --out",
        )


def draw_sheets(
    backbone: Backbone,
    role: Role | None,
    sheets: Sequence[Sheet],
    out: Path,
    sampling: ImageSampling,
    batch_size: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> int:
    """Draw the files of ``sheets`` that are not there yet; returns how many that were.

    Args:
        role: the Generator, or None for the base policy.
        out: output folder, whose protocol has been claimed.
        batch_size: images drawn at a time; changes no image.
        progress: called with (files done, files to do).

    Raises:
        CapabilityError: a grid is wanted of images that are not square and of one size.
    """
    pending = [sheet for sheet in sheets if not (out / sheet.file).is_file()]
    images = _drawn(backbone, role, pending, sampling, batch_size)
    for done, sheet in enumerate(pending, 1):
        image = _grid([next(images) for _ in sheet.seeds])
        save_image(image, out / sheet.file, out)
        progress(done, len(pending))
    return len(pending)


def save_image(image: Image.Image, file: Path, aside: Path) -> None:
    """Write a PNG under a hidden name in ``aside``, push it to the disk, and only then give it its name."""
    file.parent.mkdir(parents=True, exist_ok=True)
    # not beside the final file: a scorer lists that folder
    temporary = aside / f".unfinished-{os.getpid()}"
    image.save(temporary, format="PNG")
    fsync_path(temporary)
    temporary.replace(file)


def _drawn(
    backbone: Backbone, role: Role | None, sheets: Sequence[Sheet], sampling: ImageSampling, batch_size: int
) -> Iterator[Image.Image]:
    requests = [ImageRequest(sheet.prompt, seed) for sheet in sheets for seed in sheet.seeds]
    for start in range(0, len(requests), batch_size):
        for sample in backbone.generate(requests[start : start + batch_size], sampling, role):
            yield sample.image


def _grid(images: Sequence[Image.Image]) -> Image.Image:
    """One image as it is; four as a 2 x 2 grid, row by row."""
    if len(images) == 1:
        return images[0]
    side = images[0].width
    if any(image.size != (side, side) for image in images):
        raise CapabilityError(
            "the images cannot be put into a grid",
            "the scorer cuts it into equal squares, and they are of " + ", ".join(str(image.size) for image in images),
            "set the backbone's options so that it draws squares, or use --n 1",
        )
    grid = Image.new("RGB", (2 * side, 2 * side))
    for i, image in enumerate(images):
        grid.paste(image, ((i % 2) * side, (i // 2) * side))
    return grid
