"""What a folder of safetensors files holds, from the headers alone: names, shapes, dtypes, and the file of each."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from asg_core.errors import WeightsError

_BYTES = {
    "F64": 8,
    "I64": 8,
    "F32": 4,
    "I32": 4,
    "BF16": 2,
    "F16": 2,
    "I16": 2,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
    "I8": 1,
    "U8": 1,
    "BOOL": 1,
}


@dataclass(frozen=True)
class TensorInfo:
    """One stored tensor: its shape, its safetensors dtype name and the file that holds it."""

    shape: tuple[int, ...]
    dtype: str
    file: Path


def read_header(path: Path) -> dict[str, TensorInfo]:
    """All tensors of one safetensors file, without reading their data.

    Raises:
        WeightsError: not a safetensors file, or cut short; names the first tensor that lies beyond the end.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 0 < length <= size - 8:
                raise ValueError(f"its header claims {length} bytes, the file has {size}")
            entries = json.loads(file.read(length))
    except (OSError, ValueError) as error:
        raise WeightsError(
            f"{path} cannot be read as safetensors",
            str(error),
            "download the file again; compare its size with the source",
        ) from error
    found = {}
    for name, entry in entries.items():
        if name == "__metadata__":
            continue
        shape = tuple(entry["shape"])
        begin, end = entry["data_offsets"]
        if 8 + length + end > size or end - begin != math.prod(shape) * _BYTES.get(entry["dtype"], 0):
            raise WeightsError(
                f"tensor {name!r} of {path} is cut short",
                f"its bytes {begin} to {end} ({entry['dtype']}, shape {list(shape)}) do not fit a file of {size} bytes",
                "download the file again; compare its size with the source",
            )
        found[name] = TensorInfo(shape, entry["dtype"], path)
    return found


def read_folder(folder: Path, stem: str) -> dict[str, TensorInfo]:
    """All tensors of a folder whose weights are named after ``stem``: sharded with an index, or one file.

    Looked for in this order: ``stem.safetensors.index.json`` and its ``bf16`` form, ``stem.bf16.safetensors``,
    ``stem.safetensors``, the folder's only ``*.safetensors`` file.

    Raises:
        WeightsError: nothing usable, a shard is missing or cut short, or the index names a tensor that its shard lacks.
    """
    for index in (f"{stem}.safetensors.index.json", f"{stem}.safetensors.index.bf16.json"):
        if (folder / index).is_file():
            return _read_shards(folder / index)
    for single in (f"{stem}.bf16.safetensors", f"{stem}.safetensors"):
        if (folder / single).is_file():
            return read_header(folder / single)
    others = sorted(folder.glob("*.safetensors"))
    if len(others) == 1:
        return read_header(others[0])
    pickled = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in folder.glob(pattern))
    why = (
        f"only pickled weights are there ({', '.join(pickled[:3])}), which are never read"
        if pickled
        else "no such file"
    )
    raise WeightsError(
        f"{folder} has no {stem}.safetensors",
        f"{len(others)} unrelated safetensors files" if others else why,
        "give the directory of the released weights in safetensors form",
    )


def shapes(header: Mapping[str, TensorInfo]) -> dict[str, tuple[int, ...]]:
    """Name to shape."""
    return {name: info.shape for name, info in header.items()}


def _read_shards(index: Path) -> dict[str, TensorInfo]:
    try:
        weight_map: dict[str, str] = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
    except (OSError, ValueError, KeyError) as error:
        raise WeightsError(f"{index} cannot be used", str(error), "download the index file again") from error
    found: dict[str, TensorInfo] = {}
    for shard in sorted(set(weight_map.values())):
        first = next(name for name, file in weight_map.items() if file == shard)
        if Path(shard).name != shard or not (index.parent / shard).is_file():
            raise WeightsError(
                f"{index.parent} lacks {shard}",
                f"{index.name} says it holds {first!r} and more",
                "download the missing shard",
            )
        found.update(read_header(index.parent / shard))
    for name, shard in weight_map.items():
        if name not in found:
            raise WeightsError(
                f"tensor {name!r} is missing",
                f"{index.name} places it in {shard}, which lacks it",
                f"download {shard} again",
            )
    return found
