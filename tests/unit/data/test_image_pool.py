"""The image pool on real files: bad ones are set aside by name, good ones come out upright, RGB, in a seeded order."""

from __future__ import annotations

import json
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import asg_core.data.image_pool
from asg_core.data.image_file import MAX_PIXELS, open_image, verify_image
from asg_core.data.image_pool import ImagePool, scan_images
from asg_core.errors import CheckpointError, ImageError


def plain(path: Path, colour: str | tuple[int, ...] = "red", size: tuple[int, int] = (8, 6)) -> Path:
    """Write a picture of one colour."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)
    return path


def png_header(width: int, height: int) -> bytes:
    """A PNG of a few bytes that claims to be of this size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """A folder as people have them: good images of odd kinds, bad files, nested folders, a link that loops."""
    folder = tmp_path / "photos"
    plain(folder / "a.png")
    plain(folder / "nested" / "deeper" / "B.JPG", "green")
    plain(folder / "one.png", "blue", (1, 1))
    Image.new("CMYK", (40, 30), (0, 255, 255, 0)).save(folder / "cmyk.jpg")
    for suffix in ("webp", "bmp", "gif", "tiff", "jpeg"):
        plain(folder / f"good.{suffix}")
    Image.effect_noise((320, 240), 90).convert("RGB").save(folder / "whole.jpg")
    whole = (folder / "whole.jpg").read_bytes()
    (folder / "nested" / "truncated.jpg").write_bytes(whole[: len(whole) // 2])
    Image.effect_noise((64, 64), 90).save(folder / "cut.png")
    os.truncate(folder / "cut.png", 2000)
    (folder / "text.png").write_text("this is not an image")
    (folder / "empty.png").touch()
    (folder / "bomb.png").write_bytes(png_header(60_000, 60_000))
    (folder / "broken_link.png").symlink_to(folder / "nowhere.png")
    (folder / "notes.txt").write_text("not taken for an image")
    (folder / ".hidden.png").write_text("left out")
    (folder / "nested" / "loop").symlink_to(folder, target_is_directory=True)
    return folder


BAD = ["bomb.png", "broken_link.png", "cut.png", "empty.png", "nested/truncated.jpg", "text.png"]


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


def colour(image: Image.Image, x: int = 0, y: int = 0) -> tuple[int, ...]:
    pixel = image.getpixel((x, y))
    assert isinstance(pixel, tuple)
    return pixel


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    picture = Image.new("RGB", (40, 20), "white")
    picture.paste("red", (0, 0, 20, 20))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 90 degrees clockwise to see it upright
    picture.save(tmp_path / "turned.jpg", exif=exif, quality=95, subsampling=0)
    picture.save(tmp_path / "turned.png", exif=exif)
    for name in ("turned.jpg", "turned.png"):
        upright = open_image(tmp_path / name)
        assert upright.size == (20, 40)
        assert colour(upright, 10, 5)[1] < 60
        assert colour(upright, 10, 35)[1] > 200


def test_orientation_survives_transparency_and_16_bit(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGBA", (40, 20), (255, 0, 0, 128)).save(tmp_path / "alpha.png", exif=exif)
    Image.fromarray(np.full((20, 40), 1000, np.uint16)).save(tmp_path / "deep.png", exif=exif)
    assert open_image(tmp_path / "alpha.png").size == (20, 40)
    assert open_image(tmp_path / "deep.png").size == (20, 40)


def test_a_damaged_exif_block_does_not_cost_the_image(tmp_path: Path) -> None:
    for suffix in ("jpg", "png", "webp"):
        for block in (b"MM\0\x2a\0\0\xff\xff garbage", b"no header at all"):
            Image.new("RGB", (8, 8), "red").save(tmp_path / f"x.{suffix}", exif=b"Exif\0\0" + block)
            assert open_image(tmp_path / f"x.{suffix}").size == (8, 8)


def test_transparency_is_shown_on_white(tmp_path: Path) -> None:
    Image.new("RGBA", (4, 4), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    Image.new("LA", (4, 4), (0, 0)).save(tmp_path / "grey.png")
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([0, 0, 0, 10, 20, 30])
    palette.save(tmp_path / "palette.png", transparency=1)
    palette.save(tmp_path / "palette.gif", transparency=1)
    keyed = Image.new("RGB", (4, 4), (1, 2, 3))
    keyed.save(tmp_path / "keyed.png", transparency=(1, 2, 3))
    for name in ("clear.png", "grey.png", "palette.png", "palette.gif", "keyed.png"):
        image = open_image(tmp_path / name)
        assert image.mode == "RGB"
        assert colour(image) == (255, 255, 255), name
    Image.new("RGBA", (4, 4), (255, 0, 0, 128)).save(tmp_path / "half.png")
    assert colour(open_image(tmp_path / "half.png")) == (255, 127, 127)
    palette.save(tmp_path / "opaque.png")
    assert colour(open_image(tmp_path / "opaque.png")) == (10, 20, 30)


def test_sixteen_bit_grey_is_scaled_not_clipped(tmp_path: Path) -> None:
    grey = np.array([[0, 257 * 100, 65535]], np.uint16)
    Image.fromarray(grey).save(tmp_path / "deep.png")
    Image.fromarray(grey).save(tmp_path / "deep.tiff")
    Image.fromarray(np.array([[0.0, 0.4, 1.0]], np.float32)).save(tmp_path / "float.tiff")
    assert [colour(open_image(tmp_path / "deep.png"), x) for x in range(3)] == [(0,) * 3, (100,) * 3, (255,) * 3]
    assert [colour(open_image(tmp_path / "deep.tiff"), x) for x in range(3)] == [(0,) * 3, (100,) * 3, (255,) * 3]
    assert [colour(open_image(tmp_path / "float.tiff"), x) for x in range(3)] == [(0,) * 3, (102,) * 3, (255,) * 3]


def test_cmyk_and_grey_become_rgb(tmp_path: Path) -> None:
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "cmyk.jpg", quality=95)
    red, green, blue = colour(open_image(tmp_path / "cmyk.jpg"))
    assert red > 240
    assert max(green, blue) < 15
    Image.new("1", (8, 8), 1).save(tmp_path / "bits.png")
    assert colour(open_image(tmp_path / "bits.png")) == (255, 255, 255)


def test_only_the_first_frame_is_read(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), c) for c in ("red", "blue")]
    frames[0].save(tmp_path / "x.gif", save_all=True, append_images=frames[1:])
    assert colour(open_image(tmp_path / "x.gif")) == (255, 0, 0)


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_large_images_are_reduced_to_a_bounded_side(tmp_path: Path, suffix: str) -> None:
    plain(tmp_path / f"large.{suffix}", size=(3000, 1500))
    assert open_image(tmp_path / f"large.{suffix}", max_side=300).size == (300, 150)
    assert open_image(tmp_path / f"large.{suffix}").size == (2048, 1024)
    plain(tmp_path / f"thin.{suffix}", size=(2, 3000))
    assert open_image(tmp_path / f"thin.{suffix}", max_side=300).size == (1, 300)


def test_a_suffix_may_lie_and_nothing_of_the_file_but_pixels_is_kept(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x010E] = "a caption"
    Image.new("RGB", (8, 8), "red").save(tmp_path / "really.jpg", exif=exif, comment=b"a caption")
    (tmp_path / "really.jpg").rename(tmp_path / "named.png")
    image = open_image(tmp_path / "named.png")
    assert image.info == {}
    assert dict(image.getexif()) == {}


def test_verifying_and_opening_agree(mixed: Path) -> None:
    def fails(function: object, file: str) -> bool:
        try:
            function(mixed / file)  # type: ignore[operator]
        except ImageError:
            return True
        return False

    for file in scan_images(mixed):
        assert fails(verify_image, file) == fails(open_image, file) == (file in BAD), file


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
