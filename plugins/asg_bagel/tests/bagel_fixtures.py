"""What several test modules need: paths, options that fit the tiny checkpoint, pictures, adapters that do something."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

from asg_core.backbones.interface import Backbone, Role

FIXTURES = Path(__file__).parent / "fixtures"
GOLDEN = FIXTURES / "golden"
TAUGHT = FIXTURES / "taught.safetensors"
OPTIONS: dict[str, Any] = {"vision_shortest": 28, "rollout": {"num_timesteps": 4}, "quality": {"num_timesteps": 4}}


def taught_checkpoint(directory: Path) -> Path:
    """Write the recorded checkpoint with an expert that asks and answers (see ``make_taught``) into ``directory``."""
    shutil.copytree(GOLDEN / "checkpoint", directory)
    weights = load_file(directory / "ema.safetensors")
    save_file({**weights, **load_file(TAUGHT)}, directory / "ema.safetensors")
    return directory


def stir(backbone: Backbone, role: Role, seed: int = 0) -> None:
    """Give an adapter weights that change every output."""
    stream = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in backbone.trainable(role).values():
            parameter.copy_(torch.randn(parameter.shape, generator=stream) * 0.08)


def picture(seed: int, width: int = 60, height: int = 44) -> Image.Image:
    """Random pixels."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def digests(module: nn.Module) -> dict[str, str]:
    """A hash of every parameter and buffer, by name."""
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    return {
        name: hashlib.sha256(tensor.detach().contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()
        for name, tensor in tensors.items()
    }
