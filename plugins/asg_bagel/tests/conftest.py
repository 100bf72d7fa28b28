"""Shared fixtures: the recorded tiny checkpoint as a backbone, and a taught variant of it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from devkit.lending import Library

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


@pytest.fixture(scope="session")
def library() -> Library:
    """Backbones that tests share, one after the other."""
    return Library()


@pytest.fixture
def backbone(library: Library, load: Callable[..., BagelBackbone]) -> Iterator[BagelBackbone]:
    """A backbone as newly loaded, but with three adapters that are all non-zero."""
    with library.lend("bagel", load) as lent:
        for index, role in enumerate(Role):
            stir(lent, role, index)
        yield lent


@pytest.fixture(scope="session")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose questions parse and whose answers sometimes agree."""
    return taught_checkpoint(tmp_path_factory.mktemp("taught") / "checkpoint")
