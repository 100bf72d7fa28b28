"""The shipped tiny model, and the example's own package, which is not installed."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from asg_core.backbones.manifest import LoadRequest
from asg_core.tiny.backbone import TinyBackbone, load

sys.path.append(str(Path(__file__).resolve().parents[1]))


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny() -> TinyBackbone:
    """The shipped model."""
    return load(LoadRequest())
