"""Stored tensors into modules that were built empty: shard by shard, with a strict report."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from asg_blip3o.headers import TensorInfo
from asg_core.errors import WeightsError


@dataclass(frozen=True)
class Slot:
    """Where a stored tensor goes: an attribute of a module, and the shape it must have."""

    module: nn.Module
    attribute: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class LoadReport:
    """What became of every tensor of a checkpoint. ``unused`` ones belong to parts not asked for, or dead."""

    matched: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    unused: tuple[str, ...]


def slots(module: nn.Module, stored_name: Callable[[str], str | None]) -> dict[str, Slot]:
    """The places of ``module`` by name of the stored tensor; ``stored_name`` gives None for what is never stored."""
    found = {}
    for name, tensor in module.state_dict(keep_vars=True).items():
        stored = stored_name(name)
        if stored is not None:
            owner, _, leaf = name.rpartition(".")
            found[stored] = Slot(module.get_submodule(owner), leaf, tuple(tensor.shape))
    return found


def compare(expected: Mapping[str, Slot], header: Mapping[str, TensorInfo], unused: Iterable[str] = ()) -> LoadReport:
    """Match places and stored tensors by name; ``unused`` are prefixes of stored tensors that are skipped knowingly."""
    skipped = tuple(unused)
    rest = sorted(header.keys() - expected.keys())
    return LoadReport(
        matched=tuple(sorted(expected.keys() & header.keys())),
        missing=tuple(sorted(expected.keys() - header.keys())),
        unexpected=tuple(name for name in rest if not name.startswith(skipped)) if skipped else tuple(rest),
        unused=tuple(name for name in rest if name.startswith(skipped)) if skipped else (),
    )


def require(
    report: LoadReport,
    expected: Mapping[str, Slot],
    header: Mapping[str, TensorInfo],
    *,
    allow_unexpected: bool = False,
) -> None:
    """Refuse a checkpoint that does not fit.

    Raises:
        WeightsError: a tensor is missing or misshapen, or unexpected and not allowed; names the first.
    """
    if report.missing:
        raise WeightsError(
            f"tensor {report.missing[0]!r} is missing",
            f"{len(report.missing)} of {len(expected)} tensors are not in the checkpoint",
            "give the directory of a complete release; download missing files again",
        )
    for name in report.matched:
        if header[name].shape != expected[name].shape:
            raise WeightsError(
                f"tensor {name!r} has shape {list(header[name].shape)}",
                f"the configuration beside it asks for {list(expected[name].shape)}",
                "use config files and weights of the same release (4B and 8B files do not mix)",
            )
    if report.unexpected and not allow_unexpected:
        raise WeightsError(
            f"tensor {report.unexpected[0]!r} is unexpected",
            f"{len(report.unexpected)} tensors have no place in this model",
            "check that this is a BLIP3o release; if they are harmless, set backbone_options.allow_unexpected=true",
        )


def fill(
    expected: Mapping[str, Slot], header: Mapping[str, TensorInfo], device: torch.device, dtype: torch.dtype
) -> None:
    """Read every expected tensor from its file into its place, frozen, on ``device`` in ``dtype``.

    One tensor at a time: besides the model itself at most one tensor is in memory.

    Raises:
        WeightsError: a file cannot be read.
    """
    by_file: dict[Path, list[str]] = defaultdict(list)
    for name in expected:
        by_file[header[name].file].append(name)
    for path, names in by_file.items():
        try:
            with safe_open(path, framework="pt", device="cpu") as file:
                for name in names:
                    slot = expected[name]
                    tensor = file.get_tensor(name).to(device=device, dtype=dtype, copy=True)
                    if slot.attribute in slot.module._parameters:
                        slot.module._parameters[slot.attribute] = nn.Parameter(tensor, requires_grad=False)
                    else:
                        slot.module._buffers[slot.attribute] = tensor
        except (SafetensorError, OSError) as error:
            raise WeightsError(f"{path} cannot be read", str(error), "download the file again") from error
