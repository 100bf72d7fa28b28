"""Merge trained adapters into the weights and write the released layout again, so that upstream's own code loads it.

Files are streamed: unchanged tensors are copied byte for byte from the source, merged ones are rounded once from
float32. One text role can be merged, because Proposer and Solver sit on the same expert, and the Generator.
"""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import torch
from peft.tuners.lora import Linear
from safetensors import safe_open
from torch import Tensor

from asg_bagel.adapters import MODULE
from asg_bagel.backbone import BagelBackbone
from asg_bagel.files import find_files, read_header
from asg_core.backbones.interface import Role
from asg_core.errors import ConfigError, RunFolderError
from asg_core.models.weights.merge import ExportReport

_BLOCK = 1 << 24


def export(
    backbone: BagelBackbone,
    weights: Path,
    directory: Path,
    roles: Sequence[Role],
    *,
    float32: bool = False,
) -> ExportReport:
    """Write a checkpoint in the released layout with the adapters of ``roles`` merged in.

    Args:
        backbone: holds the adapters.
        weights: the released files that ``backbone`` was loaded from; file names and shards are kept.
        directory: must not exist.
        roles: at most one text role, and the Generator. Merging both changes what is drawn: the prompt is then read by
            the changed understanding expert, while during training all text adapters are off when drawing.
        float32: store merged tensors in float32. In the source's bfloat16 a small adapter is partly rounded away.

    Raises:
        ConfigError: two text roles. RunFolderError: ``directory`` exists. WeightsError: ``weights`` are damaged.
    """
    if len({role for role in roles if role is not Role.GENERATOR}) > 1:
        raise ConfigError(
            "the Proposer and the Solver cannot be merged into one checkpoint",
            "both change the understanding expert",
            "export them one at a time, or keep them as adapters",
        )
    if directory.exists():
        raise RunFolderError(f"{directory} exists", "an export never overwrites", "name a new directory")
    layers = dict(_adapted(backbone, roles))
    partial = directory.with_name(f".{directory.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    files = find_files(weights)
    names = [_rewrite(file, partial / file.name, layers, float32) for file in files]
    for extra in sorted(weights.iterdir()):
        if extra.is_file() and extra.suffix in (".json", ".txt", ".md") and extra.name != "README.md":
            shutil.copyfile(extra, partial / extra.name)
    partial.rename(directory)
    merged = tuple(name for of_file in names for name in of_file if name in layers)
    return ExportReport(directory, merged, sum(map(len, names)) - len(merged))


def _adapted(backbone: BagelBackbone, roles: Collection[Role]) -> Iterator[tuple[str, tuple[Linear, Role]]]:
    """Released weight names with the layer and the role that changes them; disjoint by construction."""
    for path, layer in backbone.model.language_model.named_modules():
        if isinstance(layer, Linear):
            for role in roles:
                if role.value in layer.lora_A:
                    yield f"{MODULE}.{path}.weight", (layer, role)


def _rewrite(source: Path, target: Path, layers: Mapping[str, tuple[Linear, Role]], float32: bool) -> list[str]:
    """Copy one safetensors file with some tensors replaced; returns its tensor names."""
    start, entries = read_header(source)
    header: dict[str, dict[str, Any]] = {}
    end = 0
    for name, entry in entries.items():
        size = entry["data_offsets"][1] - entry["data_offsets"][0]
        dtype = entry["dtype"]
        if float32 and name in layers:
            dtype, size = "F32", 4 * layers[name][0].weight.numel()
        header[name] = {"dtype": dtype, "shape": entry["shape"], "data_offsets": [end, end + size]}
        end += size
    text = json.dumps({"__metadata__": {"format": "pt"}, **header}, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with source.open("rb") as old, target.open("wb") as new, safe_open(source, framework="pt") as tensors:
        new.write(struct.pack("<Q", len(text)) + text)
        for name, entry in entries.items():
            if name in layers:
                new.write(_bytes(_merged(tensors.get_tensor(name), *layers[name], float32)))
            else:
                _copy(old, new, start + entry["data_offsets"][0], start + entry["data_offsets"][1])
    return list(entries)


@torch.no_grad()
def _merged(base: Tensor, layer: Linear, role: Role, float32: bool) -> Tensor:
    merged: Tensor = base.float() + layer.get_delta_weight(role.value).float().cpu()
    return merged if float32 else merged.to(base.dtype)


def _bytes(tensor: Tensor) -> bytes:
    raw: bytes = tensor.contiguous().view(torch.uint8).numpy().tobytes()
    return raw


def _copy(old: BinaryIO, new: BinaryIO, begin: int, end: int) -> None:
    old.seek(begin)
    while begin < end:
        block = old.read(min(_BLOCK, end - begin))
        new.write(block)
        begin += len(block)
