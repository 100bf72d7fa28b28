"""Released files -> model, one tensor at a time, with a strict report of what matched.

The model is built without memory on the meta device and filled in place, so that loading needs no more than the model
itself and one tensor.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from asg_bagel.config import BagelConfig, build_config, read_json
from asg_bagel.files import StoredTensor, find_files, read_inventory
from asg_bagel.modeling_bagel import Bagel, Slot, slots
from asg_core.errors import WeightsError

_SHOWN = 5


@dataclass(frozen=True)
class LoadReport:
    """What a checkpoint held, by released tensor name.

    Attributes:
        matched: loaded into the model.
        missing: needed by the model, in no file.
        unexpected: in a file, but no tensor of BAGEL.
        skipped: of the generation half, left out on purpose.
    """

    matched: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    skipped: tuple[str, ...] = ()


def read_config(directory: Path, stored: Mapping[str, StoredTensor] | None = None) -> BagelConfig:
    """Sizes of a checkpoint from its JSON files and the shapes in its headers.

    Raises:
        WeightsError: a file or one of the three tensors that carry sizes is missing.
    """
    stored = read_inventory(find_files(directory)) if stored is None else stored
    return build_config(
        read_json(directory, "llm_config.json"),
        read_json(directory, "vit_config.json"),
        read_json(directory, "config.json").get("vae_config", {}) if (directory / "config.json").is_file() else {},
        vision_rows=_shape(stored, "vit_pos_embed.pos_embed")[0],
        latent_rows=_shape(stored, "latent_pos_embed.pos_embed")[0],
        latent_width=_shape(stored, "vae2llm.weight")[1],
    )


def expected_tensors(config: BagelConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of all released tensors for these sizes; uses no memory."""
    with torch.device("meta"):
        model = Bagel(config)
    return {slot.name: slot.shape for slot in slots(model)}


def load_model(
    directory: Path,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    generation: bool = True,
) -> tuple[Bagel, LoadReport]:
    """Build the model of a checkpoint and fill it; every parameter frozen, eval mode.

    Args:
        directory: the released layout; see :func:`asg_bagel.files.find_files`.
        device: where the weights go, tensor by tensor.
        dtype: what they become.
        generation: False leaves the generation half out; layers of its expert hold placeholders.

    Raises:
        WeightsError: names the first tensors that are missing, unexpected or of another shape, or what is cut off.
    """
    stored = read_inventory(find_files(directory))
    config = read_config(directory, stored)
    with torch.device("meta"):
        model = Bagel(config, generation=generation)
    places = {slot.name: slot for slot in slots(model)}
    wanted = {name: slot for name, slot in places.items() if generation or not slot.drawing}
    report = _compare(wanted, stored, set() if generation else set(expected_tensors(config)))
    _refuse(directory, wanted, stored, report)
    _fill(wanted, stored, torch.device(device), dtype)
    for name in places.keys() - wanted.keys():
        _hold_place(places[name], dtype)
    model.language_model.model.reset_rope(device)
    return model.eval().requires_grad_(False), report


def _shape(stored: Mapping[str, StoredTensor], name: str) -> tuple[int, ...]:
    if name not in stored or len(stored[name].shape) != 2:
        raise WeightsError(
            f"tensor {name} is missing or not a matrix",
            "the model's sizes are read from it",
            "use a complete BAGEL checkpoint",
        )
    return stored[name].shape


def _compare(wanted: Mapping[str, Slot], stored: Mapping[str, StoredTensor], whole: set[str]) -> LoadReport:
    return LoadReport(
        matched=tuple(name for name in wanted if name in stored),
        missing=tuple(name for name in wanted if name not in stored),
        unexpected=tuple(name for name in stored if name not in wanted and name not in whole),
        skipped=tuple(name for name in stored if name not in wanted and name in whole),
    )


def _refuse(
    directory: Path, wanted: Mapping[str, Slot], stored: Mapping[str, StoredTensor], report: LoadReport
) -> None:
    wrong = [name for name in report.matched if stored[name].shape != wanted[name].shape]
    complaints = []
    if report.missing:
        complaints.append(f"{len(report.missing)} missing: {_list(report.missing)}")
    if report.unexpected:
        complaints.append(f"{len(report.unexpected)} unexpected: {_list(report.unexpected)}")
    if wrong:
        shapes = (f"{n} is {stored[n].shape}, expected {wanted[n].shape}" for n in wrong[:_SHOWN])
        complaints.append(f"{len(wrong)} of another shape: {', '.join(shapes)}")
    if complaints:
        raise WeightsError(
            f"{directory} does not hold this model's tensors: " + "; ".join(complaints),
            f"{len(report.matched) - len(wrong)} of {len(wanted)} tensors match",
            "use a BAGEL checkpoint in the released layout whose JSON files belong to it",
        )


def _list(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")


def _hold_place(slot: Slot, dtype: torch.dtype) -> None:
    """A parameter of the right shape that takes one number of host memory and is never computed with."""
    weight = torch.zeros((), dtype=dtype).expand(slot.parameter.shape)
    setattr(slot.module, slot.attribute, nn.Parameter(weight, requires_grad=False))


def _fill(
    wanted: Mapping[str, Slot], stored: Mapping[str, StoredTensor], device: torch.device, dtype: torch.dtype
) -> None:
    order = sorted(wanted, key=lambda name: (str(stored[name].file), name))
    for file, names in groupby(order, key=lambda name: stored[name].file):
        try:
            with safe_open(file, framework="pt") as tensors:
                for name in names:
                    slot = wanted[name]
                    tensor = tensors.get_tensor(name).to(device=device, dtype=dtype)
                    tensor = tensor.reshape(slot.parameter.shape)
                    setattr(slot.module, slot.attribute, nn.Parameter(tensor, requires_grad=False))
        except SafetensorError as error:
            raise WeightsError(f"{file} cannot be read", str(error), "download it again") from error
