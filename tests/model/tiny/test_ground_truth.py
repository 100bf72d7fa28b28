"""The training loop cannot reach ground truth: it gets pixels, and no module it loads can read a scene."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from asg_core.tiny.images import POOL_SIZE, write_images

TRUTH = {
    "asg_core.tiny." + name
    for name in (*("world", "questions", "captions", "detector", "categories", "evaluation", "truth"),)
}


def test_the_pool_is_pixels_alone_under_neutral_names(tmp_path: Path) -> None:
    write_images(tmp_path / "pool", seed=0)
    files = sorted((tmp_path / "pool").rglob("*"))
    assert [file.name for file in files] == [f"{index:04d}.png" for index in range(POOL_SIZE)]
    for file in files:
        with Image.open(file) as image:
            assert image.format == "PNG"
            assert image.info == {}
        # A PNG without metadata is these chunks and no other; tEXt, iTXt, eXIf or tIME would carry more than pixels.
        data, chunks, place = file.read_bytes(), [], 8
        while place < len(data):
            length = int.from_bytes(data[place : place + 4], "big")
            chunks.append(data[place + 4 : place + 8])
            place += 12 + length
        assert set(chunks) == {b"IHDR", b"IDAT", b"IEND"}


def test_the_pool_depends_on_the_seed_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("asg_core.tiny.images.POOL_SIZE", 20)
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        write_images(tmp_path / name, seed=seed)
    read = {name: [file.read_bytes() for file in sorted((tmp_path / name).iterdir())] for name in "abc"}
    assert read["a"] == read["b"]
    assert not set(read["a"]) & set(read["c"])


def _loaded(program: str) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-c", f"{program}\nimport sys; print(*sorted(sys.modules))"],
        capture_output=True,
        text=True,
        check=True,
    )
    return set(done.stdout.split())


def test_the_backbone_loads_no_module_that_knows_scenes() -> None:
    loaded = _loaded(
        "from asg_core.backbones.manifest import LoadRequest\n"
        "from asg_core.tiny.backbone import load, load_flow\n"
        "load(LoadRequest())\n"
        "import asg_core.training.trainer, asg_core.method.generation, asg_core.method.understanding"
    )
    assert "asg_core.tiny.causal" in loaded
    assert not loaded & TRUTH


def test_the_plugin_loads_nothing_heavy() -> None:
    loaded = _loaded("import asg_core.tiny.plugin")
    assert not loaded & {"torch", "transformers", "tokenizers", "numpy", "asg_core.tiny.backbone"}
