"""Merge trained adapters into the weights and write the released layout again, so that the original code loads it.

Shard by shard: files without a changed matrix are copied as they are, merged matrices are rounded once from float32.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from peft.tuners.lora import Linear
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from asg_blip3o.backbone import Blip3oBackbone
from asg_blip3o.headers import TensorInfo, read_folder
from asg_blip3o.modeling_blip3o import main_name
from asg_core.backbones.interface import Role
from asg_core.errors import ConfigError, RunFolderError, WeightsError
from asg_core.models.weights.merge import ExportReport


def export(
    backbone: Blip3oBackbone,
    weights: Path,
    directory: Path,
    roles: Sequence[Role] = (Role.SOLVER, Role.GENERATOR),
    *,
    float32: bool = False,
) -> ExportReport:
    """Write a checkpoint in the released layout with the adapters of ``roles`` merged in.

    Args:
        backbone: holds the adapters.
        weights: the release that ``backbone`` was loaded from; all file names and shards are kept, decoder included.
        directory: must not exist.
        roles: two roles can be merged only where they change different layers: one text role on the language model,
            the generator on the flow network. A merged text role also changes the states that drawing starts from.
        float32: store merged matrices in float32. In the source's bfloat16 a small adapter is partly rounded away.

    Raises:
        ConfigError: two roles change the same matrix. RunFolderError: ``directory`` exists.
        WeightsError: ``weights`` are damaged, or another release.
    """
    layers: dict[str, tuple[Linear, Role]] = {}
    for name, layer, role in _adapted(backbone, roles):
        if name in layers:
            raise ConfigError(
                f"the {layers[name][1].value} and {role.value} adapters cannot be merged into one checkpoint",
                f"both change {name!r}",
                "export them one at a time, or keep them as adapters",
            )
        layers[name] = (layer, role)
    if directory.exists():
        raise RunFolderError(f"{directory} exists", "an export never overwrites", "name a new directory")
    header = read_folder(weights, "model")
    _check(layers, header)
    changed = {header[name].file for name in layers}
    partial = directory.with_name(f".{directory.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(weights, partial, ignore=lambda folder, names: [n for n in names if Path(folder) / n in changed])
    for path in sorted(changed):
        _rewrite(path, partial / path.name, layers, float32)
    _update_index(partial / "model.safetensors.index.json", layers, header, float32)
    partial.rename(directory)
    return ExportReport(directory, tuple(sorted(layers)), len(header) - len(layers))


def _adapted(backbone: Blip3oBackbone, roles: Sequence[Role]) -> Iterator[tuple[str, Linear, Role]]:
    """Stored matrix, layer and role of everything that ``roles`` change."""
    for path, layer in backbone.model.named_modules():
        if isinstance(layer, Linear):
            for role in dict.fromkeys(roles):
                if role.value in layer.lora_A:
                    yield str(main_name(f"{path}.weight")), layer, role


def _check(layers: Mapping[str, tuple[Linear, Role]], header: Mapping[str, TensorInfo]) -> None:
    for name, (layer, role) in layers.items():
        shape = tuple(layer.weight.shape)
        if name not in header or header[name].shape != shape:
            raise WeightsError(
                f"the {role.value} adapter changes {name!r} of shape {list(shape)}",
                f"the release holds {list(header[name].shape) if name in header else 'no such tensor'}",
                "give the weights that the backbone was loaded from",
            )


def _rewrite(source: Path, target: Path, layers: Mapping[str, tuple[Linear, Role]], float32: bool) -> None:
    with safe_open(source, framework="pt") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    for name in tensors.keys() & layers.keys():
        tensors[name] = _merged(tensors[name], *layers[name], float32)
    save_file(tensors, target, metadata=metadata)


@torch.no_grad()
def _merged(base: Tensor, layer: Linear, role: Role, float32: bool) -> Tensor:
    merged: Tensor = base.float() + layer.get_delta_weight(role.value).float().cpu()
    return merged if float32 else merged.to(base.dtype)


def _update_index(
    path: Path, layers: Mapping[str, tuple[Linear, Role]], header: Mapping[str, TensorInfo], float32: bool
) -> None:
    """Correct the total size that the index states, where float32 matrices made it larger."""
    if not path.is_file() or not float32:
        return
    index = json.loads(path.read_text(encoding="utf-8"))
    grown = sum(
        layer.weight.numel() * (4 - (2 if header[name].dtype in ("BF16", "F16") else 4))
        for name, (layer, _) in layers.items()
    )
    index["metadata"]["total_size"] += grown
    path.write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
