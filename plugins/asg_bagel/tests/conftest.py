"""Shared fixtures: the recorded tiny checkpoint as a backbone, and a taught variant of it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from asg_bagel.backbone import BagelBackbone
from asg_core.backbones.interface import Role
from asg_core.backbones.loading import load_backbone

# Test modules share code, and pytest's importlib mode puts no test folder on the path.
sys.path.append(str(Path(__file__).parent))
from bagel_fixtures import GOLDEN, OPTIONS, stir, taught_checkpoint


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def golden() -> Path:
    """The recorded fixture: manifest, tensors, checkpoint."""
    return GOLDEN


@pytest.fixture(scope="session")
def load() -> Callable[..., BagelBackbone]:
    """Load the recorded checkpoint, or another one, through the plugin interface."""

    def make(weights: Path = GOLDEN / "checkpoint", *, checkpointing: bool = False, **options: Any) -> BagelBackbone:
        backbone = load_backbone(
            "bagel",
            weights=weights,
            device="cpu",
            dtype="float32",
            options={**OPTIONS, **options},
            gradient_checkpointing=checkpointing,
        )
        assert isinstance(backbone, BagelBackbone)
        return backbone

    return make


@pytest.fixture
def backbone(load: Callable[..., BagelBackbone]) -> BagelBackbone:
    """A fresh backbone whose three adapters are all non-zero."""
    loaded = load()
    for index, role in enumerate(Role):
        stir(loaded, role, index)
    return loaded


@pytest.fixture(scope="session")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose questions parse and whose answers sometimes agree."""
    return taught_checkpoint(tmp_path_factory.mktemp("taught") / "checkpoint")
