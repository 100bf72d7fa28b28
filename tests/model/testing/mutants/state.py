"""Backbones whose adapter files lose something, or can be read by nobody else."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from asg_core.backbones.interface import Role
from asg_core.tiny.backbone import TinyBackbone

from .registry import caught_by


@caught_by("state.files")
class PicklesAside(TinyBackbone):
    """Writes a pickle next to the tensors."""

    def save_role(self, role, directory):
        super().save_role(role, directory)
        torch.save({"role": role.value}, directory / "extra.bin")


@caught_by("state.round_trip")
class LossySave(TinyBackbone):
    """Stores adapters in low precision."""

    def save_role(self, role, directory):
        super().save_role(role, directory)
        file = directory / "adapter_model.safetensors"
        save_file({k: v.bfloat16().float() for k, v in load_file(file).items()}, file)


@caught_by("state.damaged_files")
class LenientLoad(TinyBackbone):
    """Takes what fits and says nothing of the rest."""

    def load_role(self, role: Role, directory: Path) -> None:
        with suppress(Exception):
            super().load_role(role, directory)


@caught_by("state.peft")
class OwnNames(TinyBackbone):
    """Adapter files that only this backbone can read."""

    def save_role(self, role, directory):
        super().save_role(role, directory)
        config = json.loads((directory / "adapter_config.json").read_text())
        config["target_modules"] = ["some_other_layer"]
        (directory / "adapter_config.json").write_text(json.dumps(config))
