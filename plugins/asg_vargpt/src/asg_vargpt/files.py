"""The files of a released checkpoint: JSON and the headers of the safetensors shards, checked for completeness."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from asg_core.errors import WeightsError

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
_HEADER_LIMIT = 100_000_000
_AGAIN = "download the file again"


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a checkpoint: its file, shape, and dtype as safetensors writes it ("BF16")."""

    file: Path
    shape: tuple[int, ...]
    dtype: str


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises WeightsError if the file is missing or is not one."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WeightsError(
            f"{path} cannot be read", str(error), "give the directory of the complete released weights"
        ) from error
    if not isinstance(data, dict):
        raise WeightsError(f"{path} is not a JSON object", f"it holds a {type(data).__name__}", _AGAIN)
    return data


def stored_tensors(directory: Path) -> dict[str, StoredTensor]:
    """Every tensor of a checkpoint by name, from the headers alone.

    Raises:
        WeightsError: no weights, a shard that the index names is missing or truncated (names the tensor that is cut
            off), a tensor is in two shards or not in the shard that the index names.
    """
    index = directory / INDEX
    if not index.is_file():
        if not (directory / SINGLE).is_file():
            raise WeightsError(
                f"{directory} holds no weights",
                f"neither {INDEX} nor {SINGLE} is there",
                "give the directory of the released weights",
            )
        return _header(directory / SINGLE)
    placed: Mapping[str, str] = read_json(index).get("weight_map", {})
    found: dict[str, StoredTensor] = {}
    for shard in sorted(set(placed.values())):
        for name, tensor in _header(directory / shard).items():
            if name in found:
                raise WeightsError(
                    f"tensor {name} is in {found[name].file.name} and in {shard}",
                    "the shards are of two checkpoints",
                    _AGAIN,
                )
            found[name] = tensor
    for name, shard in placed.items():
        if name not in found:
            raise WeightsError(f"tensor {name} is not in {shard}", f"{INDEX} says it is there", _AGAIN)
    return found


def _header(file: Path) -> dict[str, StoredTensor]:
    try:
        with file.open("rb") as stream:
            prefix = stream.read(8)
            length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
            entries = json.loads(stream.read(length)) if 0 < length < _HEADER_LIMIT else None
        size = file.stat().st_size
    except (OSError, ValueError) as error:
        raise WeightsError(f"{file} cannot be read", str(error), _AGAIN) from error
    if not isinstance(entries, dict):
        raise WeightsError(f"{file} is not a safetensors file", f"it has {size} bytes and no valid header", _AGAIN)
    entries.pop("__metadata__", None)
    tensors = {}
    for name, entry in sorted(entries.items(), key=lambda item: item[1]["data_offsets"]):
        if 8 + length + entry["data_offsets"][1] > size:
            raise WeightsError(
                f"{file} is truncated: tensor {name} is cut off",
                f"the file has {size} bytes, the tensor ends at {8 + length + entry['data_offsets'][1]}",
                _AGAIN,
            )
        tensors[name] = StoredTensor(file, tuple(entry["shape"]), entry["dtype"])
    return tensors
