"""What a folder of released weights holds, from file names and safetensors headers: no tensor is read.

A header is eight bytes of length and a JSON object, so names, shapes and dtypes are known, and a truncated download is
named by its first missing tensor, before any data is touched. Pickled weights are never opened.
"""

from __future__ import annotations

import json
import math
import re
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from asg_core.errors import WeightsError

SUFFIX = ".safetensors"
ITEM_BYTES = {
    **dict.fromkeys(("F64", "I64", "U64"), 8),
    **dict.fromkeys(("F32", "I32", "U32"), 4),
    **dict.fromkeys(("BF16", "F16", "I16", "U16"), 2),
    **dict.fromkeys(("F8_E4M3", "F8_E5M2", "I8", "U8", "BOOL"), 1),
}
"""Bytes per number of each safetensors dtype."""

_AGAIN = "download the file again; compare its size with the source"


@dataclass(frozen=True)
class StoredTensor:
    """One tensor in a file: dtype as safetensors writes it ("BF16"), bytes counted from the start of the file."""

    file: Path
    shape: tuple[int, ...]
    dtype: str
    begin: int
    end: int


Inventory = Mapping[str, StoredTensor]
"""Stored tensors by name."""


def read_inventory(
    folder: Path,
    stems: Sequence[str] = ("model",),
    *,
    beside: Sequence[str] = (),
    variant: str | None = None,
    any_name: bool = False,
) -> dict[str, StoredTensor]:
    """Every tensor of a folder of weights, by name.

    The files of a stem are, in this order: the whole file ``stem.safetensors``, the shards that
    ``stem.safetensors.index.json`` names, the shards ``stem-00001-of-00002.safetensors`` without an index.

    Args:
        folder: with the files; symbolic links to files are followed, as a Hub cache has them.
        stems: file names without suffix; the first one that has files is used.
        beside: more stems, whose files are added where they exist.
        variant: files of this variant (``stem.bf16.safetensors``, ``stem.safetensors.index.bf16.json``) come first.
        any_name: where no stem has files, use the folder's only safetensors file, whatever its name.

    Raises:
        WeightsError: there are no weights; a file is missing, damaged or truncated (names the first tensor that is cut
            off); an index names a path outside the folder, or a tensor that its shard lacks; a tensor is stored twice.
    """
    main = next((found for stem in stems if (found := _find(folder, stem, variant))), [])
    if not main and any_name and len(files := list(folder.glob(f"*{SUFFIX}"))) == 1:
        main = files
    if not main:
        pickled = sorted(file.name for pattern in ("*.bin", "*.pt", "*.pth") for file in folder.glob(pattern))
        never = f"only pickled weights are there ({', '.join(pickled[:3])}), which are never read"
        raise WeightsError(
            f"{folder} has no {' or '.join(f'{stem}{SUFFIX}' for stem in stems)}, whole or in shards",
            never if pickled else "no such file is there",
            "give the directory of the released weights in safetensors form",
        )
    others = [file for stem in beside for file in _find(folder, stem, variant)]
    stored: dict[str, StoredTensor] = {}
    for file in dict.fromkeys(main + others):
        for name, tensor in read_header(file).items():
            if name in stored:
                raise WeightsError(
                    f"tensor {name!r} is in {stored[name].file.name} and in {file.name}",
                    f"{file.parent} mixes two checkpoints",
                    "keep the files of one checkpoint only",
                )
            stored[name] = tensor
    return stored


def read_header(file: Path) -> dict[str, StoredTensor]:
    """Every tensor of one safetensors file, in order of their data. Raises WeightsError if the file is missing, is no
    safetensors file, or is shorter than its header says."""
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            if length > size - 8:
                raise ValueError(f"its header claims {length} bytes, the file has {size}")
            entries: dict[str, Any] = json.loads(stream.read(length))
        entries.pop("__metadata__", None)
        ordered = sorted(entries.items(), key=lambda item: item[1]["data_offsets"])
        tensors = {name: _stored(file, 8 + length, name, entry) for name, entry in ordered}
    except (OSError, struct.error, ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightsError(f"{file} is no safetensors file", str(error), _AGAIN) from error
    for name, tensor in tensors.items():
        if tensor.end > size:
            raise WeightsError(
                f"{file} is truncated: tensor {name!r} is cut off",
                f"it ends at byte {tensor.end}, the file has {size} bytes",
                _AGAIN,
            )
    return tensors


def _stored(file: Path, start: int, name: str, entry: Mapping[str, Any]) -> StoredTensor:
    begin, end = entry["data_offsets"]
    shape = tuple(entry["shape"])
    size = math.prod(shape) * ITEM_BYTES.get(entry["dtype"], 0)
    if not 0 <= begin <= end or (size and end - begin != size):
        raise ValueError(f"tensor {name!r} of shape {list(shape)} has bytes {begin} to {end}")
    return StoredTensor(file, shape, entry["dtype"], start + begin, start + end)


def shapes(inventory: Inventory) -> dict[str, tuple[int, ...]]:
    """Name to shape."""
    return {name: tensor.shape for name, tensor in inventory.items()}


def read_json(file: Path) -> dict[str, Any]:
    """The JSON object in ``file``. Raises WeightsError if the file is missing or holds anything else."""
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WeightsError(
            f"{file} cannot be read", str(error), "give the complete directory of the released weights"
        ) from error
    if not isinstance(data, dict):
        raise WeightsError(f"{file} is not a JSON object", f"it holds a {type(data).__name__}", _AGAIN)
    return data


def path_inside(folder: Path, name: str, named_by: Path) -> Path:
    """The file that a downloaded file names, below ``folder``.

    The name alone is judged: a link of that name may lead anywhere, as the links of a Hub cache do. Raises
    WeightsError if ``name`` is absolute, empty, or climbs out of ``folder``.
    """
    parts = {*PurePosixPath(name).parts, *PureWindowsPath(name).parts} if isinstance(name, str) else {".."}
    if not parts or ".." in parts or PurePosixPath(name).is_absolute() or PureWindowsPath(name).anchor:
        raise WeightsError(
            f"{named_by} names {name!r}",
            f"that is no path inside {folder}, and nothing outside is read",
            f"download {named_by.name} again from a source that you trust",
        )
    return folder / name


def check_tokenizer_files(folder: Path) -> None:
    """Refuse a ``tokenizer_config.json`` that names a tokenizer file outside ``folder``, which transformers would read:
    WeightsError names the path."""
    config = folder / "tokenizer_config.json"
    names = read_json(config).get("fast_tokenizer_files") if config.is_file() else None
    for name in names if isinstance(names, list) else ():
        path_inside(folder, name, config)


def _find(folder: Path, stem: str, variant: str | None) -> list[Path]:
    for infix in (f".{variant}", "") if variant else ("",):
        whole = folder / f"{stem}{infix}{SUFFIX}"
        if whole.is_file():
            return [whole]
        index = folder / f"{stem}{SUFFIX}.index{infix}.json"
        if index.is_file():
            return _indexed(index)
    return _complete(folder, stem)


def _indexed(index: Path) -> list[Path]:
    """The shards that an index names; each holds what the index says."""
    placed = read_json(index).get("weight_map")
    if not isinstance(placed, dict):
        raise WeightsError(f"{index} is no index of weights", "it has no weight_map", _AGAIN)
    paths = {name: path_inside(index.parent, shard, index) for name, shard in placed.items()}
    for name, file in paths.items():
        if not file.is_file():
            raise WeightsError(
                f"{index.parent} lacks {placed[name]}",
                f"{index.name} says that it holds {name!r}",
                "download the missing file",
            )
    headers = {file: read_header(file) for file in sorted(set(paths.values()))}
    for name, file in paths.items():
        if name not in headers[file]:
            raise WeightsError(
                f"tensor {name!r} is missing", f"{index} places it in {file.name}, which lacks it", _AGAIN
            )
    return list(headers)


def _complete(folder: Path, stem: str) -> list[Path]:
    """Shards that are there without an index; the count in their names says whether all are."""
    pattern = re.compile(rf"{re.escape(stem)}-\d+-of-(\d+){re.escape(SUFFIX)}")
    shards = {file: match for file in sorted(folder.glob(f"*{SUFFIX}")) if (match := pattern.fullmatch(file.name))}
    promised = {int(match[1]) for match in shards.values()}
    if shards and promised != {len(shards)}:
        raise WeightsError(
            f"{folder} holds {len(shards)} of {max(promised)} shards of {stem}{SUFFIX}",
            "a download is not complete, or two are mixed",
            "download the missing files",
        )
    return list(shards)
