"""The image pool on real files: bad ones are set aside by name, good ones come in a seeded order."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

import asg_core.data.image_pool
from asg_core.data.image_file import MAX_PIXELS, open_image
from asg_core.data.image_pool import ImagePool, scan_images
from asg_core.errors import CheckpointError, ImageError

from .conftest import BAD, plain, png_header


def test_exactly_the_bad_files_are_quarantined_each_once_with_a_reason(mixed: Path) -> None:
    rows: list[tuple[str, str]] = []
    pool = ImagePool(mixed, 0, lambda file, reason: rows.append((file.as_posix(), reason)))
    assert sorted(file for file, _ in rows) == BAD
    assert all(reason for _, reason in rows)
    assert len(pool) == len(pool.files) - len(BAD) == 10
    pool.take(3 * len(pool))
    assert len(rows) == len(BAD)


def test_reasons_tell_the_cases_apart(mixed: Path) -> None:
    reasons = ImagePool(mixed, 0).quarantined
    assert "empty" in reasons["empty.png"]
    assert "not an image" in reasons["text.png"]
    assert "60000 x 60000 pixels" in reasons["bomb.png"] or str(MAX_PIXELS) in reasons["bomb.png"]
    assert "truncated" in reasons["nested/truncated.jpg"]
    assert "link" in reasons["broken_link.png"]


def test_a_bomb_is_refused_before_it_is_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bomb.png").write_bytes(png_header(10_001, 10_000))  # above our bound, below Pillow's own

    def decoded(*_: object) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", decoded)
    with pytest.raises(ImageError) as raised:
        open_image(tmp_path / "bomb.png")
    assert "10001 x 10000 pixels" in raised.value.why


def test_large_folders_are_checked_while_drawing_and_lose_no_draw(mixed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asg_core.data.image_pool, "VERIFY_UP_TO", 3)
    rows: list[str] = []
    pool = ImagePool(mixed, 0, lambda file, reason: rows.append(file.as_posix()))
    assert rows == []
    drawn = [image.path.relative_to(mixed).as_posix() for image in pool.take(10)]
    assert len(set(drawn)) == 10
    assert not set(drawn) & set(BAD)
    pool.take(10)
    assert sorted(rows) == BAD


def test_scan_finds_nested_files_once_and_ends_on_loops(mixed: Path, tmp_path: Path) -> None:
    found = list(scan_images(mixed))
    assert len(found) == len(set(found))
    assert "nested/deeper/B.JPG" in found
    assert not [file for file in found if "loop" in file or "hidden" in file or file.endswith(".txt")]
    (tmp_path / "linked").symlink_to(mixed, target_is_directory=True)
    assert sorted(scan_images(tmp_path / "linked")) == sorted(scan_images(mixed))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: None, "cannot be used"),
        (lambda p: p.write_text("x"), "cannot be used"),
        (lambda p: p.mkdir(), "no usable image"),
        (lambda p: (p.mkdir(), (p / "x.png").touch()), "no usable image"),
    ],
    ids=["missing", "a file", "empty", "only bad"],
)
def test_unusable_folders_are_one_clear_error(tmp_path: Path, make: object, message: str) -> None:
    folder = tmp_path / "f"
    make(folder)  # type: ignore[operator]
    with pytest.raises(ImageError, match=message) as raised:
        ImagePool(folder, 0)
    assert str(folder) in raised.value.what
    assert raised.value.fix


def test_a_pool_whose_last_file_goes_bad_says_so_instead_of_looping(tmp_path: Path) -> None:
    file = plain(tmp_path / "a.png")
    pool = ImagePool(tmp_path, 0)
    file.unlink()
    with pytest.raises(ImageError, match="no usable image"):
        pool.take(1)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_named_pipe_does_not_hang_the_scan(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    plain(tmp_path / "a.png")
    assert list(ImagePool(tmp_path, 0).quarantined) == ["pipe.png"]


@pytest.fixture
def many(tmp_path: Path) -> Path:
    """Twenty images of different colours."""
    for i in range(20):
        plain(tmp_path / "many" / f"{i:02d}.png", (i, i, i))
    return tmp_path / "many"


def names(pool: ImagePool, count: int) -> list[str]:
    return [image.path.name for image in pool.take(count)]


def test_an_epoch_shows_every_image_once_and_the_next_in_another_order(many: Path) -> None:
    pool = ImagePool(many, 0)
    first, second = names(pool, 20), names(pool, 20)
    assert sorted(first) == sorted(second) == [f"{i:02d}.png" for i in range(20)]
    assert first != second
    assert first != sorted(first)


def test_the_order_depends_on_seed_and_epoch_alone(many: Path) -> None:
    a, b = ImagePool(many, 7), ImagePool(many, 7)
    b.take(33)
    assert [a.order(e) for e in range(3)] == [b.order(e) for e in range(3)]
    assert a.order(0) != ImagePool(many, 8).order(0)
    assert names(a, 20) == [a.files[i] for i in a.order(0)]
    split = ImagePool(many, 7)
    assert [n for k in (1, 5, 3, 11) for n in names(split, k)] == names(ImagePool(many, 7), 20)


def test_resuming_from_json_continues_exactly(many: Path) -> None:
    whole, first = ImagePool(many, 0), ImagePool(many, 0)
    expected = names(whole, 50)
    assert names(first, 23) == expected[:23]
    second = ImagePool(many, 0)
    second.restore(json.loads(json.dumps(first.state())))
    assert names(second, 27) == expected[23:]


def test_resuming_remembers_quarantine_even_if_the_file_was_repaired(many: Path) -> None:
    good = (many / "03.png").read_bytes()
    (many / "03.png").write_bytes(b"")
    first = ImagePool(many, 0)
    expected = names(first, 30)
    (many / "03.png").write_bytes(good)
    second = ImagePool(many, 0)
    second.restore({**first.state(), "epoch": 0, "position": 0})
    assert names(second, 30) == expected


def test_resuming_on_another_folder_is_refused(many: Path) -> None:
    state = ImagePool(many, 0).state()
    plain(many / "new.png")
    with pytest.raises(CheckpointError, match="not those of the checkpoint"):
        ImagePool(many, 0).restore(state)
