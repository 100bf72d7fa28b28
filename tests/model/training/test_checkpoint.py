"""A checkpoint gives back what was saved, or is refused; which one a run resumes from."""

from __future__ import annotations

import random
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from torch import Tensor

from asg_core import load_backbone
from asg_core.backbones.interface import Backbone, Role
from asg_core.backbones.manifest import LoraSettings
from asg_core.errors import CheckpointError
from asg_core.training.checkpoint import CheckpointManager, load
from asg_core.training.checkpoint_files import newest_good, step_of, steps, verify
from asg_core.training.optimizer import RoleOptimizer
from asg_core.training.state import set_random_state
from devkit.lending import Library

Optimizers = dict[Role, RoleOptimizer]


@pytest.fixture
def backbone(library: Library) -> Iterator[Backbone]:
    make = partial(load_backbone, "tiny", device="cpu", dtype="float32", lora=LoraSettings(rank=1, alpha=2.0))
    with library.lend("tiny, rank 1", make) as lent:
        yield lent


def optimizers_of(backbone: Backbone) -> Optimizers:
    return {role: RoleOptimizer(backbone.trainable(role), 1e-3, 0.01, 1.0, Accelerator(cpu=True)) for role in Role}


def step(optimizer: RoleOptimizer) -> None:
    """One optimizer step towards 0.1."""
    weights = list(optimizer.parameters.values())
    optimizer.step([lambda: torch.stack([((weight - 0.1) ** 2).sum() for weight in weights]).sum()])


def everything(backbone: Backbone, optimizers: Optimizers) -> dict[str, Tensor]:
    """Copies of all weights and moments."""
    weights = {f"{role}.{name}": w.detach().clone() for role in Role for name, w in backbone.trainable(role).items()}
    return weights | {f"{role}.{name}": m for role, one in optimizers.items() for name, m in one.state().items()}


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture
def optimizers(backbone: Backbone) -> Optimizers:
    made = optimizers_of(backbone)
    for optimizer in made.values():
        step(optimizer)
    return made


def save(folder: Path, number: int, backbone: Backbone, optimizers: Optimizers) -> Path:
    """The checkpoint of a step, of what matters here of a run's state."""
    state: Any = SimpleNamespace(
        step=number, backbone=backbone, optimizers=optimizers, state_dict=lambda: {"window": [0.5]}
    )
    assert CheckpointManager(folder).write(state) is None
    return folder / f"step-{number:06d}"


@pytest.fixture
def saved(backbone: Backbone, optimizers: Optimizers, tmp_path: Path) -> Path:
    """The checkpoint of step 7, alone in its folder."""
    return save(tmp_path, 7, backbone, optimizers)


def test_a_resumed_run_goes_on_as_the_one_that_was_saved(
    saved: Path, backbone: Backbone, optimizers: Optimizers
) -> None:
    """Weights and moments, bit for bit, and so is the next step."""
    before = everything(backbone, optimizers)
    step(optimizers[Role.SOLVER])
    after = everything(backbone, optimizers)
    resumed = optimizers_of(backbone)
    assert verify(saved)["window"] == [0.5]
    load(saved, backbone, resumed)
    assert equal(everything(backbone, resumed), before)
    step(resumed[Role.SOLVER])
    assert equal(everything(backbone, resumed), after)


def test_a_plugin_that_draws_from_global_generators_draws_the_same_after_a_resume(saved: Path) -> None:
    def draws() -> list[float]:
        return [float(torch.rand(1)), random.random(), float(np.random.rand())]  # noqa: NPY002

    (stream,) = verify(saved)["random"]
    set_random_state(stream)
    first = draws()
    assert all(a != b for a, b in zip(draws(), first, strict=True))
    set_random_state(stream)
    assert draws() == first


def flip_a_byte(checkpoint: Path) -> None:
    file = checkpoint / "optimizer-solver.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def add_a_file(checkpoint: Path) -> None:
    (checkpoint / "adapters" / "extra.json").write_text("{}")


def put_a_link(checkpoint: Path) -> None:
    file = checkpoint / "optimizer-solver.safetensors"
    file.rename(checkpoint.parent / "elsewhere")
    file.symlink_to(checkpoint.parent / "elsewhere")


@pytest.mark.parametrize("damage", [flip_a_byte, add_a_file, put_a_link])
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(
    damage: object, saved: Path, backbone: Backbone, optimizers: Optimizers
) -> None:
    newer = save(saved.parent, 8, backbone, optimizers)
    assert newest_good(saved.parent)[0] == newer
    assert callable(damage)
    damage(newer)
    found, _, errors = newest_good(saved.parent)
    assert found == saved
    assert [newer.name in error.what for error in errors] == [True]


def test_the_two_newest_good_checkpoints_are_kept(saved: Path, backbone: Backbone, optimizers: Optimizers) -> None:
    for number in (8, 9, 10):
        save(saved.parent, number, backbone, optimizers)
    assert [step_of(found) for found in steps(saved.parent)] == [10, 9]


def test_moments_of_another_shape_are_refused(saved: Path, backbone: Backbone, optimizers: Optimizers) -> None:
    file = saved / "optimizer-solver.safetensors"
    moments = load_file(file)
    name = next(name for name in moments if name.endswith("exp_avg"))
    save_file({**moments, name: moments[name][:1, :1].clone()}, file)
    with pytest.raises(CheckpointError, match="exp_avg"):
        load(saved, backbone, optimizers)
