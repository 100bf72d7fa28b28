"""Merge adapters into released weights and write the released layout again, so that the model's own code loads it.

One tensor is in memory at a time: unchanged ones stay as they are bit for bit, changed ones are rounded once from
float32. The new folder appears under its name when it is complete.
"""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft.tuners.lora import Linear
from safetensors import SafetensorError, safe_open
from torch import nn

from asg_core.backbones.interface import Role
from asg_core.errors import ConfigError, RunFolderError, WeightsError
from asg_core.models.weights.inventory import ITEM_BYTES, Inventory, StoredTensor

_WEIGHT_SUFFIXES = {".safetensors", ".bin", ".pt", ".pth", ".ckpt"}


@dataclass(frozen=True)
class ExportReport:
    """The new checkpoint in the released layout, the tensors with an adapter merged in, and how many have none."""

    directory: Path
    merged: tuple[str, ...]
    copied: int


@dataclass(frozen=True)
class Merge:
    """One stored matrix and the adapter that changes it."""

    layer: Linear
    role: Role


def adapted_weights(
    module: nn.Module, roles: Sequence[Role], stored_name: Callable[[str], str | None]
) -> dict[str, Merge]:
    """The stored matrices that the adapters of ``roles`` in ``module`` change, by the stored name of the weight there.
    Raises ConfigError if two roles change the same matrix, or none changes any."""
    merges: dict[str, Merge] = {}
    for path, layer in module.named_modules():
        for role in dict.fromkeys(roles) if isinstance(layer, Linear) else ():
            if role.value not in layer.lora_A:
                continue
            name = str(stored_name(f"{path}.weight"))
            if name in merges:
                raise ConfigError(
                    f"the {merges[name].role.value} and {role.value} adapters cannot be merged into one checkpoint",
                    f"both change {name!r}",
                    "export them one at a time, or keep them as adapters",
                )
            merges[name] = Merge(layer, role)
    if not merges:
        raise ConfigError(
            "there is no adapter to merge",
            f"no layer carries one of {', '.join(role.value for role in roles) or 'no role'}",
            "name a role that this model has",
        )
    return merges


def export_merged(
    merges: Mapping[str, Merge], inventory: Inventory, weights: Path, directory: Path, *, float32: bool = False
) -> ExportReport:
    """Write a copy of ``weights`` with adapters merged in.

    Every weight file of ``inventory`` and every file that holds no weights is written under its name, except hidden
    files and ``README.md``. Other weights beside those of ``inventory`` are left out: they would lack the adapters.

    Args:
        merges: by stored name, from :func:`adapted_weights`.
        inventory: all tensors of the model, in files below ``weights``.
        weights: the folder that the model was loaded from.
        directory: must not exist.
        float32: store merged tensors in float32. In bfloat16 a small adapter is partly rounded away.

    Raises:
        RunFolderError: ``directory`` exists. WeightsError: ``weights`` are damaged, or of another model.
    """
    if directory.exists():
        raise RunFolderError(f"{directory} exists", "an export never overwrites", "name a new directory")
    for name, merge in merges.items():
        shape = tuple(merge.layer.weight.shape)
        if name not in inventory or inventory[name].shape != shape:
            raise WeightsError(
                f"the {merge.role.value} adapter changes {name!r} of shape {list(shape)}",
                f"the release holds {list(inventory[name].shape) if name in inventory else 'no such tensor'}",
                "give the weights that the backbone was loaded from",
            )
    partial = directory.with_name(f".{directory.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        for file in _files(weights, {tensor.file for tensor in inventory.values()}):
            tensors = {name: tensor for name, tensor in inventory.items() if tensor.file == file}
            target = partial / file.relative_to(weights)
            target.parent.mkdir(parents=True, exist_ok=True)
            if tensors.keys() & merges.keys():
                _rewrite(file, target, tensors, merges, float32=float32)
            else:
                shutil.copyfile(file, target)
        if float32:
            _correct_sizes(partial, merges, inventory)
        partial.rename(directory)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return ExportReport(directory, tuple(sorted(merges)), len(inventory) - len(merges))


def _files(weights: Path, stored: set[Path]) -> Iterable[Path]:
    """Files of an export: ``stored``, and what lies around them."""
    homes = {file.parent for file in stored}
    yield from sorted(stored)
    for file in sorted(weights.rglob("*")):
        hidden = any(part.startswith(".") for part in file.relative_to(weights).parts)
        unmerged = file.suffix in _WEIGHT_SUFFIXES and file.parent in homes
        if file.is_file() and file not in stored and not hidden and not unmerged and file.name != "README.md":
            yield file


@torch.no_grad()
def _rewrite(
    source: Path, target: Path, tensors: Mapping[str, StoredTensor], merges: Mapping[str, Merge], *, float32: bool
) -> None:
    """Copy one safetensors file with some tensors replaced, one tensor in memory at a time."""
    dtypes = {name: "F32" if float32 and name in merges else tensor.dtype for name, tensor in tensors.items()}
    # wide numbers first, as safetensors writes them: readers that map a file want aligned tensors
    order = sorted(tensors, key=lambda name: -ITEM_BYTES.get(dtypes[name], 1))
    header: dict[str, dict[str, Any]] = {}
    end = 0
    for name in order:
        tensor, begin = tensors[name], end
        widened = dtypes[name] != tensor.dtype
        end += 4 * merges[name].layer.weight.numel() if widened else tensor.end - tensor.begin
        header[name] = {"dtype": dtypes[name], "shape": tensor.shape, "data_offsets": [begin, end]}
    try:
        with target.open("wb") as new, safe_open(source, framework="pt") as stored:
            text = json.dumps({"__metadata__": stored.metadata() or {"format": "pt"}, **header}).encode()
            text += b" " * (-len(text) % 8)
            new.write(struct.pack("<Q", len(text)) + text)
            for name in order:
                values = stored.get_tensor(name)
                if name in merges:
                    change = merges[name].layer.get_delta_weight(merges[name].role.value).float().cpu()
                    values = (values.float() + change).to(torch.float32 if float32 else values.dtype)
                new.write(values.contiguous().flatten().view(torch.uint8).numpy().data)
            new.flush()
            os.fsync(new.fileno())
    except SafetensorError as error:
        raise WeightsError(f"{source} cannot be read", str(error), "put the original weights back") from error


def _correct_sizes(directory: Path, merges: Mapping[str, Merge], inventory: Inventory) -> None:
    """Correct the total size that an index states, where float32 matrices made it larger."""
    for file in directory.rglob("*.safetensors.index*.json"):
        index = json.loads(file.read_text(encoding="utf-8"))
        placed, metadata = index.get("weight_map", {}), index.get("metadata", {})
        if "total_size" in metadata:
            metadata["total_size"] += sum(
                4 * merge.layer.weight.numel() - (inventory[name].end - inventory[name].begin)
                for name, merge in merges.items()
                if name in placed
            )
            file.write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
