"""The recorded tiny checkpoint, loaded as a user would load it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from asg_blip3o.backbone import Blip3oBackbone
from PIL import Image

from asg_core.backbones.interface import Role
from asg_core.backbones.loading import load_backbone
from asg_core.backbones.manifest import LoraSettings
from devkit.lending import Library

GOLDEN = Path(__file__).parent / "fixtures" / "golden"
CHECKPOINT = GOLDEN / "checkpoint"
SMALL = {"flow_steps": 4, "decoder_steps": 3, "height": 32, "width": 32}

Load = Callable[..., Blip3oBackbone]


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def load() -> Load:
    """Loads the recorded checkpoint with small drawing profiles; keyword arguments are backbone options."""

    def _load(weights: Path = CHECKPOINT, dtype: Any = "float32", checkpointing: bool = False, **options: Any) -> Any:
        return load_backbone(
            "blip3o",
            weights=weights,
            device="cpu",
            dtype=dtype,
            options={"rollout": SMALL, "quality": SMALL, "eva_head_width": 16, **options},
            lora=LoraSettings(rank=4, alpha=8),
            gradient_checkpointing=checkpointing,
        )

    return _load


@pytest.fixture(scope="session")
def library() -> Library:
    """Backbones that tests share, one after the other."""
    return Library()


@pytest.fixture
def backbone(library: Library, load: Load) -> Iterator[Blip3oBackbone]:
    """A backbone as newly loaded, whose adapters have no effect yet."""
    with library.lend("blip3o", load) as lent:
        yield lent


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A copy of the checkpoint to damage."""
    return Path(shutil.copytree(CHECKPOINT, tmp_path / "checkpoint"))


@pytest.fixture(scope="session")
def golden() -> Path:
    """The fixture folder."""
    return GOLDEN


@pytest.fixture(scope="session")
def released() -> Path:
    """The checkpoint in it, in the released layout."""
    return CHECKPOINT


@pytest.fixture(scope="session")
def wake() -> Callable[..., None]:
    """Gives an adapter an effect, as training would."""

    def _wake(backbone: Blip3oBackbone, role: Role, seed: int = 0, size: float = 0.3) -> None:
        stream = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, parameter in backbone.trainable(role).items():
                if name.endswith("lora_B.weight"):
                    parameter.copy_(torch.randn(parameter.shape, generator=stream) * size)

    return _wake


@pytest.fixture(scope="session")
def picture() -> Callable[..., Image.Image]:
    """Makes a random RGB image of a seed."""

    def _picture(seed: int, width: int = 60, height: int = 88) -> Image.Image:
        noise = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
        return Image.fromarray(noise)

    return _picture
