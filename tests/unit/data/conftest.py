"""Image files, good and bad."""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path

import pytest
from PIL import Image


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
