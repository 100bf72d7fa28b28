# ruff: noqa: PT017 - whether there is an error is open; if there is one, it must say something
"""Whatever lies in a folder of images: the good ones come out, the others are set aside, and nothing crashes."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import asg_core.data.image_file as image_files
from asg_core.data.image_file import open_image, verify_image
from asg_core.data.image_pool import ImagePool, scan_images
from asg_core.errors import ImageError
from devkit.sizes import fuzz


def encoded() -> dict[str, bytes]:
    """Small valid files of all kinds, by name."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (13, 17, 4), dtype=np.uint8)
    rgb, rgba = Image.fromarray(pixels[..., :3].copy()), Image.fromarray(pixels)
    palette = rgb.convert("P", palette=Image.Palette.ADAPTIVE)
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 5, "caption"
    pictures: dict[str, tuple[Image.Image, dict[str, Any]]] = {
        "rgb.jpg": (rgb, {"exif": exif}),
        "progressive.jpg": (rgb, {"progressive": True}),
        "grey.jpg": (rgb.convert("L"), {}),
        "cmyk.jpg": (rgb.convert("CMYK"), {}),
        "rgb.png": (rgb, {"exif": exif}),
        "rgba.png": (rgba, {}),
        "palette.png": (palette, {"transparency": 3}),
        "deep.png": (Image.fromarray(rng.integers(0, 2**16, (5, 7), dtype=np.uint16)), {}),
        "bits.png": (rgb.convert("1"), {}),
        "animated.png": (rgb, {"save_all": True, "append_images": [rgb.rotate(90)]}),
        "animated.gif": (palette, {"save_all": True, "append_images": [palette.rotate(180)], "transparency": 1}),
        "rgb.webp": (rgb, {"lossless": True, "exif": exif}),
        "animated.webp": (rgba, {"save_all": True, "append_images": [rgba.rotate(90)]}),
        "rgb.bmp": (rgb, {}),
        "palette.bmp": (palette, {}),
        "rgb.tiff": (rgb, {"compression": "tiff_lzw"}),
        "float.tif": (Image.fromarray(rng.random((4, 6), dtype=np.float32)), {}),
        "pages.tif": (rgb, {"save_all": True, "append_images": [rgb]}),
    }
    formats = {
        ".jpg": "JPEG",
        ".png": "PNG",
        ".gif": "GIF",
        ".webp": "WEBP",
        ".bmp": "BMP",
        ".tiff": "TIFF",
        ".tif": "TIFF",
    }
    found = {}
    for name, (picture, options) in pictures.items():
        out = io.BytesIO()
        picture.save(out, formats[os.path.splitext(name)[1]], **options)
        found[name] = out.getvalue()
    return found


FILES = encoded()


@pytest.mark.parametrize("name", FILES)
def test_the_valid_files_that_are_damaged_below_are_valid(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(FILES[name])
    verify_image(tmp_path / name)
    assert open_image(tmp_path / name).mode == "RGB"


@st.composite
def damaged(draw: st.DrawFn) -> tuple[str, bytes]:
    """A suffix and the bytes of a file: valid, cut, with bytes changed, put in or repeated, or noise."""
    data = bytearray(FILES[draw(st.sampled_from(sorted(FILES)))])
    for _ in range(draw(st.integers(0, 3))):
        place = draw(st.integers(0, len(data)))
        match draw(st.sampled_from(["cut", "set", "set early", "insert", "drop", "huge", "repeat"])):
            case "cut":
                del data[place:]
            case "set" if place < len(data):
                data[place] = draw(st.integers(0, 255))
            case "set early" if data:
                data[place % min(len(data), 64)] = draw(st.sampled_from([0, 1, 127, 128, 254, 255]))
            case "insert":
                data[place:place] = draw(st.binary(max_size=12))
            case "drop":
                del data[place : place + 5]
            case "huge":
                data[place : place + 4] = draw(st.sampled_from([b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\0\0\0\0"]))
            case _:
                data[place:place] = data[place : place + 40]
    if draw(st.integers(0, 19)) == 0:
        data = bytearray(draw(st.binary(max_size=80)))
    return draw(st.sampled_from(sorted({os.path.splitext(n)[1] for n in FILES}))), bytes(data)


@fuzz(2500)
@given(file=damaged(), side=st.integers(1, 40))
def test_any_bytes_are_an_image_of_bounded_size_or_an_image_error(
    file: tuple[str, bytes], side: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    suffix, data = file
    path = tmp_path_factory.getbasetemp() / f"fuzzed{suffix}"
    path.write_bytes(data)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(image_files, "MAX_PIXELS", 10**6)  # for speed: what is below is decoded
        try:
            verify_image(path)
        except ImageError as error:
            assert error.why
        try:
            image = open_image(path, side)
        except ImageError as error:
            assert error.why
            return
    assert image.mode == "RGB"
    assert 1 <= min(image.size) <= max(image.size) <= side
    assert image.info == {}


def test_folders_of_every_oddity_give_a_pool_of_the_good_files(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    (folder / "sub").mkdir(parents=True)
    for name, data in FILES.items():
        (folder / name).write_bytes(data)
    good = set(FILES)
    (folder / "wrong.png").write_bytes(FILES["rgb.jpg"])
    good.add("wrong.png")
    (folder / "UPPER.JPG").write_bytes(FILES["rgb.jpg"])
    good.add("UPPER.JPG")
    (folder / "linked.png").symlink_to(folder / "rgb.png")
    good.add("linked.png")
    (folder / "empty.png").touch()
    (folder / "half.jpg").write_bytes(FILES["rgb.jpg"][:200])
    (folder / "directory.png").mkdir()
    (folder / "a.png").symlink_to(folder / "b.png")
    (folder / "b.png").symlink_to(folder / "a.png")
    (folder / "sub" / "up").symlink_to("..", target_is_directory=True)
    (folder / "sub" / "self").symlink_to("self", target_is_directory=True)
    (folder / "device.png").symlink_to("/dev/zero")
    os.mkfifo(folder / "pipe.png")
    pool = ImagePool(folder, 0)
    assert {f for f in pool.files if f not in pool.quarantined} == good
    assert {image.path.name for image in pool.take(len(good))} == good


def test_files_that_vanish_or_become_unreadable_after_the_start_are_passed_over(tmp_path: Path) -> None:
    for i in range(6):
        (tmp_path / f"{i}.png").write_bytes(FILES["rgb.png"])
    told: list[str] = []
    pool = ImagePool(tmp_path, 0, lambda file, reason: told.append(file.name))
    (tmp_path / "1.png").unlink()
    (tmp_path / "2.png").write_bytes(b"")
    (tmp_path / "3.png").unlink()
    (tmp_path / "3.png").mkdir()
    names = [image.path.name for image in pool.take(9)]
    assert set(names) == {"0.png", "4.png", "5.png"}
    assert sorted(told) == ["1.png", "2.png", "3.png"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_unreadable_files_and_folders_are_passed_over(tmp_path: Path) -> None:
    for name in ("good.png", "closed.png", "sub/inside.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(FILES["rgb.png"])
    (tmp_path / "closed.png").chmod(0)
    (tmp_path / "sub").chmod(0)
    try:
        assert sorted(scan_images(tmp_path)) == ["closed.png", "good.png"]
        assert list(ImagePool(tmp_path, 0).quarantined) == ["closed.png"]
    finally:
        (tmp_path / "sub").chmod(0o700)
