"""Opening a step's images on several processes."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import asg_core.data.image_pool
from asg_core.data.image_pool import ImagePool

from .conftest import Threads


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Nine files of which three are broken and found out only when they are drawn."""
    monkeypatch.setattr(asg_core.data.image_pool, "VERIFY_UP_TO", 0)
    for i in range(9):
        if i % 3 == 1:
            (tmp_path / f"{i}.png").write_bytes(b"not an image")
        else:
            Image.new("RGB", (8, 8), (20 * i, 0, 0)).save(tmp_path / f"{i}.png")
    return tmp_path


@pytest.mark.parametrize("count", [2, 3, 7])
def test_shares_together_are_the_images_of_one_process(photos: Path, count: int) -> None:
    """Five draws of four images pass the end of the folder several times and meet every broken file."""
    alone = ImagePool(photos, seed=3)
    expected = [[image.path.name for image in alone.take(4)] for _ in range(5)]
    board, barrier = [None] * count, threading.Barrier(count)

    def draw(rank: int) -> tuple[list[list[str]], dict[str, Any]]:
        pool = ImagePool(photos, seed=3)
        processes = Threads(rank, count, board, barrier)
        drawn = [pool.take(4, processes.share(4), processes.gather) for _ in range(5)]
        return [[image.path.name for image in images] for images in drawn], pool.state()

    with ThreadPoolExecutor(count) as threads:
        shares = list(threads.map(draw, range(count)))
    for i, names in enumerate(expected):
        assert [name for drawn, _ in shares for name in drawn[i]] == names
    assert [state for _, state in shares] == [alone.state()] * count
    assert set(alone.state()["quarantined"]) == {"1.png", "4.png", "7.png"}
