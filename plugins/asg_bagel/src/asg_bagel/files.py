"""The weight files of a release: which exist, what their headers say, whether they are whole.

Headers are read directly (eight bytes of length, then JSON), so that shapes are known and a truncated download is named
by its first missing tensor before any data is touched.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from asg_core.errors import WeightsError

MAIN_STEMS = ("ema", "model")
"""Weights without the autoencoder, best first: a fine-tune holds averaged weights next to raw ones."""

VAE_STEM = "ae"

_SUFFIX = ".safetensors"


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor is: its file, shape, and dtype as safetensors writes it ("BF16")."""

    file: Path
    shape: tuple[int, ...]
    dtype: str


def find_files(directory: Path) -> list[Path]:
    """The weight files of a checkpoint, in name order: main weights (one file or shards), then the autoencoder.

    ``ema.safetensors`` wins over ``model.safetensors``; each may be sharded, with or without an index.

    Raises:
        WeightsError: none is there, or an index names a shard that is not.
    """
    main = next((files for stem in MAIN_STEMS if (files := _group(directory, stem))), None)
    if main is None:
        raise WeightsError(
            f"{directory} has no BAGEL weights",
            "neither ema.safetensors nor model.safetensors, whole or in shards, is there",
            "give the directory that holds the release (ema.safetensors, ae.safetensors, *.json)",
        )
    vae = _group(directory, VAE_STEM)
    return main + [file for file in vae if file not in main]


def read_inventory(files: Iterable[Path]) -> dict[str, StoredTensor]:
    """Every tensor of ``files`` by name.

    Raises:
        WeightsError: a file is damaged or truncated (names the first tensor that is cut), or a name occurs twice.
    """
    found: dict[str, StoredTensor] = {}
    for file in files:
        for name, entry in read_header(file)[1].items():
            if name in found:
                raise WeightsError(
                    f"tensor {name} is in {found[name].file.name} and in {file.name}",
                    "the directory mixes two checkpoints",
                    "keep the files of one checkpoint only",
                )
            found[name] = StoredTensor(file, tuple(entry["shape"]), entry["dtype"])
    return found


def _group(directory: Path, stem: str) -> list[Path]:
    """One file, or the shards an index names, or the shards that are there."""
    whole = directory / f"{stem}{_SUFFIX}"
    if whole.is_file():
        return [whole]
    index = directory / f"{stem}{_SUFFIX}.index.json"
    shards = sorted(directory.glob(f"{stem}-*-of-*{_SUFFIX}"))
    if index.is_file():
        shards = _indexed(index)
    elif shards:
        promised = int(shards[0].name.removesuffix(_SUFFIX).rpartition("-of-")[2])
        if len(shards) != promised:
            raise WeightsError(
                f"{directory} holds {len(shards)} of {promised} shards of {stem}{_SUFFIX}",
                "a download is not complete",
                "fetch the rest",
            )
    return shards


def _indexed(index: Path) -> list[Path]:
    try:
        weight_map: dict[str, str] = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        names = sorted(set(weight_map.values()))
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise WeightsError(f"{index} is not a weight index", repr(error), "download it again") from error
    for tensor, name in weight_map.items():
        if Path(name).name != name or not (index.parent / name).is_file():
            raise WeightsError(
                f"{name} is missing, which holds {tensor}", f"{index.name} names it", f"put {name} next to {index.name}"
            )
    return [index.parent / name for name in names]


def read_header(file: Path) -> tuple[int, dict[str, Any]]:
    """Offset of the data in a safetensors file, and its entries (dtype, shape, data_offsets) in order of their data.

    Raises:
        WeightsError: no safetensors file, or shorter than its header says; names the first tensor that is cut.
    """
    size = file.stat().st_size
    try:
        with file.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            if length > size:
                raise ValueError(f"its header needs {length} bytes, the file has {size}")
            entries: dict[str, Any] = json.loads(stream.read(length))
        entries.pop("__metadata__", None)
        ordered = sorted(entries.items(), key=lambda item: item[1]["data_offsets"][1])
        cut = next((name for name, entry in ordered if 8 + length + entry["data_offsets"][1] > size), None)
    except (struct.error, ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightsError(f"{file} is not a safetensors file", str(error), "download it again") from error
    if cut is not None:
        raise WeightsError(
            f"{file.name} is truncated: tensor {cut} is not complete",
            f"the file has {size} bytes, its header announces more",
            "download it again",
        )
    return 8 + length, dict(ordered)
