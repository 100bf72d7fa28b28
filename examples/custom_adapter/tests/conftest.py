"""Shared fixtures: a tiny random checkpoint, the adapter on it, and transformers' own model on it as the reference."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from asg_janus.backbone import JanusBackbone
from asg_janus.tiny_checkpoint import write_tiny_checkpoint
from PIL import Image
from transformers import JanusForConditionalGeneration

from asg_core.backbones.interface import Role
from asg_core.backbones.loading import load_backbone
from asg_core.backbones.manifest import LoraSettings

Load = Callable[..., JanusBackbone]


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of a tiny Janus. Shared: copy before damaging."""
    return write_tiny_checkpoint(tmp_path_factory.mktemp("janus"))


@pytest.fixture(scope="session")
def reference(checkpoint: Path) -> JanusForConditionalGeneration:
    """transformers' own model on the same files."""
    return JanusForConditionalGeneration.from_pretrained(checkpoint).eval()


@pytest.fixture(scope="session")
def load(checkpoint: Path) -> Load:
    """Loads a checkpoint through the plugin interface; keyword arguments are backbone options."""

    def _load(
        weights: Path = checkpoint, dtype: Any = "float32", checkpointing: bool = False, **options: Any
    ) -> JanusBackbone:
        backbone = load_backbone(
            "janus",
            weights=weights,
            dtype=dtype,
            options=options,
            lora=LoraSettings(rank=4, alpha=8),
            gradient_checkpointing=checkpointing,
        )
        assert isinstance(backbone, JanusBackbone)
        return backbone

    return _load


@pytest.fixture(scope="session")
def wake() -> Callable[[JanusBackbone, Role], None]:
    """Gives an adapter an effect, as training would."""

    def _wake(backbone: JanusBackbone, role: Role) -> None:
        stream = torch.Generator().manual_seed(list(Role).index(role))
        with torch.no_grad():
            for name, parameter in backbone.trainable(role).items():
                if name.endswith("lora_B.weight"):
                    parameter.copy_(torch.randn(parameter.shape, generator=stream) * 0.1)

    return _wake


@pytest.fixture(scope="session")
def awake(load: Load, wake: Callable[[JanusBackbone, Role], None]) -> JanusBackbone:
    """A backbone whose three adapters all have an effect. Shared: do not change it."""
    backbone = load()
    for role in Role:
        wake(backbone, role)
    return backbone


@pytest.fixture(scope="session")
def picture() -> Callable[..., Image.Image]:
    """Makes a random image of a seed."""

    def _picture(seed: int, width: int = 40, height: int = 28, mode: str = "RGB") -> Image.Image:
        pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
        return Image.fromarray(pixels).convert(mode)

    return _picture
