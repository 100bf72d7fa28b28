"""sha256 digests by which protocols name prompt files, weights and adapters."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

from asg_core.backbones.interface import Backbone, Role

_BLOCK_BYTES = 64 * 1024
_BLOCKS = 64


def digest_of(parts: Iterable[bytes]) -> str:
    """sha256 of a sequence of byte strings; where one ends matters."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(f"{len(part)}\0".encode())
        digest.update(part)
    return digest.hexdigest()


def file_digest(path: Path, pattern: str = "*") -> str:
    """sha256 of a file, as sha256sum has it, or of names and contents of a folder's files that match ``pattern``."""
    if path.is_file():
        return hashlib.sha256(path.read_bytes()).hexdigest()
    return digest_of(part for file in sorted(path.glob(pattern)) for part in (file.name.encode(), file.read_bytes()))


def weights_digest(folder: Path | None) -> str | None:
    """sha256 of names, sizes and up to 64 evenly spaced blocks of 64 KiB of each file; None for embedded weights.

    Tells two checkpoints apart without reading all of them. Hidden files are left out.
    """
    if folder is None:
        return None
    digest = hashlib.sha256()
    for file in sorted(f for f in folder.rglob("*") if f.is_file()):
        name = file.relative_to(folder)
        if any(part.startswith(".") for part in name.parts):
            continue
        size = file.stat().st_size
        blocks = min(_BLOCKS, -(-size // _BLOCK_BYTES))
        digest.update(f"{name.as_posix()}\0{size}\0".encode())
        with file.open("rb") as data:
            for i in range(blocks):
                data.seek(round(i * (size - _BLOCK_BYTES) / (blocks - 1)) if blocks > 1 else 0)
                digest.update(data.read(_BLOCK_BYTES))
    return digest.hexdigest()


def adapter_digests(backbone: Backbone) -> dict[str, str]:
    """sha256 of names and values of each role's adapter."""
    return {
        role.value: digest_of(
            part
            for name, tensor in sorted(backbone.trainable(role).items())
            for part in (name.encode(), tensor.detach().cpu().contiguous().numpy().tobytes())
        )
        for role in Role
    }
