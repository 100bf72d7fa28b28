"""Back to the released layout: one role's adapter merged into the weights, everything else as it was.

One shard is in memory at a time. Shards keep their names; tensors that no forward pass reads are kept too, so that
upstream's own code loads the result.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from peft.tuners.lora import Linear
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from asg_core.backbones.interface import Role
from asg_core.errors import ConfigError, RunFolderError, WeightsError
from asg_core.models.weights.merge import ExportReport
from asg_vargpt.backbone import VargptBackbone
from asg_vargpt.files import INDEX, read_json, stored_tensors
from asg_vargpt.names import to_released


def export(
    backbone: VargptBackbone,
    weights: Path,
    directory: Path,
    roles: Sequence[Role] = (Role.SOLVER,),
    *,
    float32: bool = False,
) -> ExportReport:
    """Write a checkpoint in the released layout with the adapter of one role merged in.

    Args:
        backbone: holds the adapter.
        weights: the released files that ``backbone`` was loaded from.
        directory: must not exist.
        roles: exactly one; all three change the same layers of the language model.
        float32: store merged tensors in float32. In the source's bfloat16 a small adapter is partly rounded away.

    Raises:
        ConfigError: not exactly one role.
        RunFolderError: ``directory`` exists.
        WeightsError: ``weights`` are damaged.
    """
    if len(set(roles)) != 1:
        raise ConfigError(
            f"{len(set(roles))} roles cannot be merged into one VARGPT checkpoint",
            "all roles change the same layers of the language model",
            "export one role at a time, or keep them as adapters",
        )
    if directory.exists():
        raise RunFolderError(f"{directory} exists", "an export never overwrites", "name a new directory")
    role = next(iter(roles))
    layers = _adapted(backbone, role)
    stored = stored_tensors(weights)
    shards = sorted({tensor.file for tensor in stored.values()})
    partial = directory.with_name(f".{directory.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for file in sorted(weights.iterdir()):
        if file.is_file() and file.suffix in (".json", ".txt"):
            shutil.copyfile(file, partial / file.name)
    size = sum(_rewrite(shard, partial / shard.name, layers, role, float32) for shard in shards)
    if (partial / INDEX).is_file():
        index = read_json(partial / INDEX)
        index["metadata"] = {**index.get("metadata", {}), "total_size": size}
        (partial / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    partial.rename(directory)
    return ExportReport(directory, tuple(sorted(layers)), len(stored) - len(layers))


def _adapted(backbone: VargptBackbone, role: Role) -> dict[str, Linear]:
    """Released weight names of the layers that ``role`` changes."""
    architecture = backbone.model.architecture
    chunks, levels = architecture.decoder.chunks, len(architecture.vae.widths)
    return {
        to_released(f"{path}.weight", chunks, levels): layer
        for path, layer in backbone.model.named_modules()
        if isinstance(layer, Linear) and role.value in layer.lora_A
    }


@torch.no_grad()
def _rewrite(source: Path, target: Path, layers: Mapping[str, Linear], role: Role, float32: bool) -> int:
    """Copy one shard with some tensors replaced; returns the bytes of its tensors."""
    try:
        with safe_open(source, framework="pt") as shard:
            tensors: dict[str, Tensor] = {name: shard.get_tensor(name) for name in shard.keys()}  # noqa: SIM118
            metadata = shard.metadata()
    except (OSError, SafetensorError) as error:
        raise WeightsError(f"{source} cannot be read", str(error), "put the original weights back") from error
    for name in tensors.keys() & layers.keys():
        base = tensors[name]
        merged = base.float() + layers[name].get_delta_weight(role.value).float().cpu()
        tensors[name] = merged if float32 else merged.to(base.dtype)
    save_file(tensors, target, metadata=metadata or {"format": "pt"})
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
