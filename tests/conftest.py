"""Shared fixtures: the embedded backbone, real images, and a way to compare whole models bit for bit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from PIL import Image

from asg_core import RunConfig, load_backbone
from asg_core.backbones.interface import Backbone, Role
from asg_core.data.image_pool import PoolImage
from devkit.lending import Library


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
    from asg_core.backbones.registry import find_manifest, resolve

    folder = tmp_path_factory.mktemp("scenes")
    resolve(str(find_manifest("tiny").images))(folder, 0)
    return folder


@pytest.fixture
def images(scenes: Path) -> list[PoolImage]:
    """Six images of the embedded world."""
    files = sorted(p for p in scenes.rglob("*") if p.is_file())[:6]
    return [PoolImage(p, Image.open(p).convert("RGB")) for p in files]


@pytest.fixture(scope="session")
def config() -> RunConfig:
    """A small configuration with learning rates that move something in one step."""
    return RunConfig.model_validate(
        {
            "steps": 5,
            "images_per_step": 4,
            "evaluate": False,
            "ask": {"max_new_tokens": 24, "spec_max_new_tokens": 96},
            "solve": {"max_new_tokens": 8},
            "generate": {"prompts_per_step": 3, "candidates": 3},
            "optimizer": {"lr_proposer": 1e-3, "lr_solver": 1e-3, "lr_generator": 1e-3},
        }
    )


class Watch:
    """Remembers every adapter tensor and the base, and tells which of them changed by a single bit."""

    def __init__(self, backbone: Backbone) -> None:
        self.backbone = backbone
        self.before = {role: {k: v.detach().clone() for k, v in backbone.trainable(role).items()} for role in Role}

    def moved(self) -> set[Role]:
        """The roles of which a tensor is not what it was."""
        now = {role: self.backbone.trainable(role) for role in Role}
        return {r for r in Role if any(not torch.equal(self.before[r][k], now[r][k]) for k in self.before[r])}

    def reset(self) -> None:
        """Set every adapter tensor back."""
        with torch.no_grad():
            for role in Role:
                for name, parameter in self.backbone.trainable(role).items():
                    parameter.copy_(self.before[role][name])


@pytest.fixture
def watch() -> Callable[[Backbone], Watch]:
    """Start watching a backbone's adapters."""
    return Watch
