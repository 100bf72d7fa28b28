"""Released directory -> model, one tensor at a time, with a strict report."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from asg_core.errors import WeightsError
from asg_vargpt.config import Architecture, infer
from asg_vargpt.files import StoredTensor, read_json, stored_tensors
from asg_vargpt.modeling_vargpt import Vargpt
from asg_vargpt.names import SOS, to_released, unused_tensors

CONFIG = "config.json"


@dataclass(frozen=True)
class LoadReport:
    """What became of every stored tensor.

    Attributes:
        matched: names of tensors that were loaded.
        unused: stored, expected, and not read by any forward pass; not loaded.
        skipped: only needed to draw, and left out on request.
        missing: expected and not stored.
        unexpected: stored and not expected.
        misshapen: (name, stored shape, expected shape).
    """

    matched: tuple[str, ...]
    unused: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    misshapen: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...]
    skipped: tuple[str, ...] = ()

    @property
    def complete(self) -> bool:
        """Whether the files hold exactly what the model expects."""
        return not (self.missing or self.unexpected or self.misshapen)

    def raise_if_incomplete(self, directory: Path) -> None:
        """Raises WeightsError that names the first tensors that do not fit."""
        if self.complete:
            return
        complaints = [
            f"{len(names)} {word}: {', '.join(names[:3])}"
            for word, names in (("missing", self.missing), ("unexpected", self.unexpected))
            if names
        ]
        complaints += [f"{name} has shape {stored}, expected {wanted}" for name, stored, wanted in self.misshapen[:3]]
        raise WeightsError(
            f"the weights in {directory} do not fit the model",
            "; ".join(complaints),
            "give the complete, unmodified directory of one VARGPT-v1.1 release",
        )


def empty_model(config: Mapping[str, Any], architecture: Architecture, *, generation: bool = True) -> Vargpt:
    """The model on the meta device: names and shapes, no memory."""
    with torch.device("meta"):
        return Vargpt(config, architecture, generation=generation).eval().requires_grad_(False)


def released_names(model: Vargpt) -> dict[str, str]:
    """Released name -> own name of everything that is loaded."""
    architecture = model.architecture
    levels = len(architecture.vae.widths)
    return {to_released(name, architecture.decoder.chunks, levels): name for name in model.state_dict()}


def expected_tensors(model: Vargpt) -> dict[str, tuple[int, ...]]:
    """Released name -> shape of everything that a checkpoint of this architecture holds, used or not."""
    own = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    expected = unused_tensors(model.architecture, model.hidden_size)
    expected.update({released: own[name] for released, name in released_names(model).items()})
    expected[SOS] = (model.architecture.tokens.start + 1, model.architecture.decoder.width)
    return expected


def compare(model: Vargpt, stored: Mapping[str, tuple[int, ...]]) -> LoadReport:
    """Hold the stored names and shapes against what the model expects."""
    expected = expected_tensors(model)
    unused = unused_tensors(model.architecture, model.hidden_size)
    common = sorted(expected.keys() & stored.keys())
    return LoadReport(
        matched=tuple(name for name in common if name not in unused),
        unused=tuple(name for name in common if name in unused),
        missing=tuple(sorted(expected.keys() - stored.keys())),
        unexpected=tuple(sorted(stored.keys() - expected.keys())),
        misshapen=tuple((name, stored[name], expected[name]) for name in common if stored[name] != expected[name]),
    )


def load_model(
    directory: Path, *, device: str = "cpu", dtype: torch.dtype = torch.float32, generation: bool = True
) -> tuple[Vargpt, LoadReport]:
    """Build the model of a released directory, frozen, in eval mode.

    Tensors are read one by one and moved to ``device`` at once, so that nothing is held twice.

    Args:
        directory: config.json and safetensors, sharded or single, any float dtype.
        device: torch device string.
        dtype: of everything but the VAE, which is float32.
        generation: False leaves out everything that is only needed to draw; the files must hold it all the same.

    Raises:
        WeightsError: a file is missing, damaged or truncated, or a tensor is missing, extra or misshapen.
    """
    config = read_json(directory / CONFIG)
    stored = stored_tensors(directory)
    shapes = {name: tensor.shape for name, tensor in stored.items()}
    architecture = infer(config, shapes)
    report = compare(empty_model(config, architecture), shapes)
    report.raise_if_incomplete(directory)
    model = empty_model(config, architecture, generation=generation)
    wanted = released_names(model)
    report = replace(
        report,
        matched=tuple(name for name in report.matched if name in wanted),
        skipped=tuple(name for name in report.matched if name not in wanted),
    )
    _fill(model, stored, torch.device(device), dtype)
    model.rebuild_rotary_tables(torch.device(device))
    return model, report


def _fill(model: Vargpt, stored: Mapping[str, StoredTensor], device: torch.device, dtype: torch.dtype) -> None:
    by_file: dict[Path, list[tuple[str, str]]] = defaultdict(list)
    for released, own in released_names(model).items():
        by_file[stored[released].file].append((released, own))
    for file, names in by_file.items():
        try:
            with safe_open(file, framework="pt") as shard:
                for released, own in names:
                    tensor = _read(shard, released, model.architecture.tokens.start)
                    wanted = torch.float32 if own.startswith("vae.") else dtype
                    _assign(model, own, tensor.to(device=device, dtype=wanted))
        except SafetensorError as error:
            raise WeightsError(f"{file} cannot be read", str(error), "download the file again") from error


def _read(shard: Any, released: str, start_token: int) -> Tensor:
    if released == SOS:
        # Slicing reads one row; the whole table is 0.6 GB at full size.
        return shard.get_slice(released)[start_token : start_token + 1][0]  # type: ignore[no-any-return]
    return shard.get_tensor(released)  # type: ignore[no-any-return]


def _assign(model: nn.Module, name: str, tensor: Tensor) -> None:
    path, _, leaf = name.rpartition(".")
    owner = model.get_submodule(path)
    if leaf in owner._parameters:
        setattr(owner, leaf, nn.Parameter(tensor, requires_grad=False))
    else:
        setattr(owner, leaf, tensor)
