"""Files that open come out upright, opaque, RGB and of bounded size, and nothing of them but pixels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from asg_core.data.image_file import open_image, verify_image
from asg_core.data.image_pool import scan_images
from asg_core.errors import ImageError

from .conftest import BAD, plain


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
