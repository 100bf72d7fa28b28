"""Images are decoded ahead on threads, and nobody can tell from what is taken or set aside, or from a resumed run."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from PIL import Image

import asg_core.data.image_pool
from asg_core.data.image_file import open_image
from asg_core.data.image_pool import ImagePool


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for i in range(8):
        Image.new("RGB", (8, 6), (i, 0, 0)).save(tmp_path / f"{i}.png")
    return tmp_path


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, bool]]:
    """Name and whether on another thread, of every file that is decoded."""
    seen: list[tuple[str, bool]] = []

    def noted(path: Path) -> Image.Image:
        seen.append((path.name, threading.current_thread() is not threading.main_thread()))
        return open_image(path)

    monkeypatch.setattr(asg_core.data.image_pool, "open_image", noted)
    return seen


def finish(pool: ImagePool) -> None:
    """Wait for what is being decoded."""
    for future in pool._ahead.values():
        future.exception()


def test_the_next_images_are_decoded_while_the_caller_works_and_each_once(
    folder: Path, decoded: list[tuple[str, bool]]
) -> None:
    pool = ImagePool(folder, 0)
    order = [pool.files[i] for i in pool.order(0)]
    assert [image.path.name for image in pool.take(2)] == order[:2]
    finish(pool)
    assert {name for name, _ in decoded} == set(order[:4])
    assert [image.path.name for image in pool.take(2)] == order[2:4]
    finish(pool)
    assert sorted(name for name, _ in decoded) == sorted(order[:6])
    assert all(on_a_thread for _, on_a_thread in decoded)


def test_a_bad_file_is_set_aside_in_its_turn_and_not_before(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asg_core.data.image_pool, "VERIFY_UP_TO", 0)
    reported: list[Path] = []
    order = [ImagePool(folder, 0).files[i] for i in ImagePool(folder, 0).order(0)]
    (folder / order[2]).write_text("no image")
    pool = ImagePool(folder, 0, lambda file, why: reported.append(file))
    pool.take(2)
    finish(pool)
    assert reported == []
    assert pool.state()["quarantined"] == {}
    assert [image.path.name for image in pool.take(2)] == order[3:5]
    assert reported == [Path(order[2])]


@pytest.mark.parametrize("counts", [(3, 2, 5, 1), (7, 7)])
def test_a_resumed_pool_goes_on_with_the_same_pixels(folder: Path, counts: tuple[int, ...]) -> None:
    pool = ImagePool(folder, 0)
    for count in counts:
        state = pool.state()
        resumed = ImagePool(folder, 0)
        resumed.take(4)  # something else was decoded ahead
        resumed.restore(state)
        expected, found = pool.take(count), resumed.take(count)
        assert [image.path for image in found] == [image.path for image in expected]
        assert [image.image.tobytes() for image in found] == [image.image.tobytes() for image in expected]
        assert resumed.state() == pool.state()
