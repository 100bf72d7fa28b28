"""Shared fixtures: the embedded backbone and its own images."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from devkit.lending import Library

from asg_core import RunConfig, load_backbone
from asg_core.backbones.interface import Backbone
from asg_core.backbones.registry import find_manifest, resolve


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def library() -> Library:
    """Backbones that tests share, one after the other."""
    return Library()


@pytest.fixture
def tiny(library: Library) -> Iterator[Backbone]:
    """The embedded backbone that draws image tokens, as newly loaded."""
    with library.lend("tiny", partial(load_backbone, "tiny", device="cpu", dtype="float32")) as backbone:
        yield backbone


@pytest.fixture
def tiny_flow(library: Library) -> Iterator[Backbone]:
    """The embedded backbone that draws by rectified flow, as newly loaded."""
    with library.lend("tiny_flow", partial(load_backbone, "tiny_flow", device="cpu", dtype="float32")) as backbone:
        yield backbone


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
