"""Base weights on disk: one safetensors file, half precision, with the sizes of the model in its metadata."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from asg_core.errors import WeightsError
from asg_core.tiny.model import TinyConfig, TinyModel

FILE_NAME = "base.safetensors"


def shipped() -> Path:
    """The folder of the checkpoint that comes with the package."""
    return Path(str(files("asg_core.tiny").joinpath("data")))


def load_base(directory: Path | None = None) -> TinyModel:
    """Read a base model as frozen float32 in eval mode.

    Args:
        directory: holds ``base.safetensors``; the shipped checkpoint when None.

    Raises:
        WeightsError: the file is missing, damaged or of another shape.
    """
    path = _existing(directory)
    try:
        with safe_open(path, framework="pt") as file:
            config = _sizes(file.metadata())
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except (SafetensorError, KeyError, ValueError, TypeError) as error:
        raise _unreadable(path, error) from error
    # Building the model draws initial weights that are overwritten; the global random stream is not ours to move.
    with torch.random.fork_rng(devices=[]):
        model = TinyModel(config)
    try:
        model.load_state_dict({name: t.float() if t.is_floating_point() else t for name, t in state.items()})
    except RuntimeError as error:
        raise WeightsError(
            f"{path} does not fit the model", str(error), "use a file written by this version"
        ) from error
    return model.eval().requires_grad_(False)


def read_sizes(directory: Path | None = None) -> TinyConfig:
    """The sizes in the header of :func:`load_base`'s file; reads no tensor. Raises WeightsError as that does."""
    path = _existing(directory)
    try:
        with safe_open(path, framework="pt") as file:
            return _sizes(file.metadata())
    except (SafetensorError, KeyError, ValueError, TypeError) as error:
        raise _unreadable(path, error) from error


def _existing(directory: Path | None) -> Path:
    path = (directory or shipped()) / FILE_NAME
    if not path.is_file():
        raise WeightsError(
            f"no weights at {path}",
            "the file does not exist",
            "leave weights unset, or make some: python examples/pretrain_tiny pretrain --out DIR",
        )
    return path


def _sizes(metadata: Mapping[str, str] | None) -> TinyConfig:
    return TinyConfig(**json.loads((metadata or {})["config"]))


def _unreadable(path: Path, error: Exception) -> WeightsError:
    return WeightsError(
        f"cannot read {path}", str(error), "it was not written by examples/pretrain_tiny, or is damaged"
    )


def to_device(model: TinyModel, device: str, dtype: str) -> TinyModel:
    """Move a base model; ``dtype`` is "float32", "bfloat16" or "float16"."""
    return model.to(device=device, dtype=getattr(torch, dtype))
