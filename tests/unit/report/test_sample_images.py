"""Images of samples in a report: which are read, how many, how large."""

from __future__ import annotations

import base64
import io
import json
import random
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from PIL import Image

from asg_core.runs.report.gallery import (
    GENERATION_ITEMS,
    REPORT_BYTES,
    THUMBNAIL_BYTES,
    THUMBNAIL_SIDE,
    UNDERSTANDING_ITEMS,
)
from asg_core.runs.report.render import render_report

from .page import SVG, Page, rendered


def thumbnails(page: Page) -> list[str]:
    return [uri for uri in page.attributes("src") if not uri.startswith(SVG)]


def test_images_outside_the_samples_folder_are_not_read(runs: SimpleNamespace, tmp_path: Path) -> None:
    run = runs.build_run(tmp_path / "run", 1, metrics=False)
    runs.scene(random.Random(3), 32).save(tmp_path / "private.png")
    file = run / "samples" / "step-000001.json"
    sample = json.loads(file.read_text())
    outside = ("../../private.png", str(tmp_path / "private.png"))
    sample["items"] = [dict(sample["items"][0], image=name) for name in outside]
    file.write_text(json.dumps(sample))
    page = rendered(run)
    assert thumbnails(page) == []
    assert page.text.count("image not available") == 2


def test_long_run_stays_small_and_spreads_its_samples(runs: SimpleNamespace, tmp_path: Path) -> None:
    run = runs.build_run(tmp_path / "run", 2000, sample_every=2001)
    rng = random.Random(1)
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (384, 512, 3), dtype="uint8"))
    buffer = io.BytesIO()
    noise.save(buffer, "PNG", compress_level=1)
    largest = buffer.getvalue()
    for step in range(100, 2001, 100):
        runs.write_samples(run, step, "understanding" if step % 200 else "generation", rng, 8)
    for file in (run / "samples").rglob("*.png"):
        file.write_bytes(largest)
    target = render_report(run)
    assert target.stat().st_size < REPORT_BYTES
    assert max(len(base64.b64decode(uri.split(",")[1])) for uri in thumbnails(Page(target))) <= THUMBNAIL_BYTES
    page = Page(target)
    shown = [int(n) for n in re.findall(r"step (\d+)", page.text)]
    assert shown[0] == 1
    assert {1900, 2000} <= set(shown), "the end of the run is shown"
    assert len(thumbnails(page)) == UNDERSTANDING_ITEMS + GENERATION_ITEMS * 4


def test_small_images_keep_every_pixel_and_large_ones_are_smooth(runs: SimpleNamespace, tmp_path: Path) -> None:
    run = runs.build_run(tmp_path / "run", 6, metrics=False)
    runs.write_samples(run, 7, "understanding", random.Random(0), 512, items=1)
    page = rendered(run)
    images = [attrs for tag, attrs in page.tags if tag == "img"]
    pixel = next(i for i in images if i["class"] == "pixel")
    assert pixel["width"] == "32"
    encoded = (pixel["src"] or "").split(",", 1)[1]
    shown = Image.open(io.BytesIO(base64.b64decode(encoded)))
    original = Image.open(run / "samples" / "step-000001" / "00.png")
    assert np.array_equal(np.asarray(shown), np.asarray(original))
    photo = next(i for i in images if i["class"] == "photo")
    assert photo["width"] == "512", "the size of the original"
    inlined = Image.open(io.BytesIO(base64.b64decode((photo["src"] or "").split(",", 1)[1])))
    assert max(inlined.size) == THUMBNAIL_SIDE
