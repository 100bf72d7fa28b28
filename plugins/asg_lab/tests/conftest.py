"""Shared fixtures: the embedded backbone and its own images."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from asg_core import RunConfig, load_backbone
from asg_core.backbones.interface import Backbone
from asg_core.backbones.registry import find_manifest, resolve


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def tiny() -> Backbone:
    """A fresh embedded backbone that draws image tokens."""
    return load_backbone("tiny", device="cpu", dtype="float32")


@pytest.fixture
def tiny_flow() -> Backbone:
    """A fresh embedded backbone that draws by rectified flow."""
    return load_backbone("tiny_flow", device="cpu", dtype="float32")


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded backbone's own unlabeled image folder."""
    folder = tmp_path_factory.mktemp("scenes")
    resolve(str(find_manifest("tiny").images))(folder, 0)
    return folder


@pytest.fixture
def config() -> RunConfig:
    """Settings of short answers."""
    return RunConfig.model_validate({"solve": {"max_new_tokens": 8}})
