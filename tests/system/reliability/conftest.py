"""A small model with moments to save, a way to make the n-th write fail, and small runs."""

from __future__ import annotations

import builtins
import errno
import io
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator

import asg_core.models.lora
import asg_core.training.checkpoint
from asg_core import RunConfig, Trainer, load_backbone
from asg_core.backbones.interface import Backbone, Role
from asg_core.backbones.manifest import LoraSettings
from asg_core.runs.folder import read_json_lines
from asg_core.training.checkpoint import CheckpointManager
from asg_core.training.optimizer import RoleOptimizer
from devkit.lending import Library

STATE: dict[str, Any] = {
    "betas": {"proposer": 0.01, "solver": 0.02},
    "replay_floors": {"proposer": 1e-12, "solver": None, "generator": 0.0},
    "window": [0.5, 0.25],
    "baseline": 0.0,
    "monitor": {"kl-drift": [0.1]},
    "pool": {"epoch": 0, "position": 1, "files": "0", "quarantined": {}},
    "nonfinite_in_a_row": 0,
    "seconds": 1.5,
    "images_at_once": {"understanding": 2},
}


@dataclass
class Model:
    """What a checkpoint is made of."""

    backbone: Backbone
    optimizers: dict[Role, RoleOptimizer]

    def save(self, folder: Path, step: int) -> Path:
        state: Any = SimpleNamespace(
            step=step, backbone=self.backbone, optimizers=self.optimizers, state_dict=lambda: STATE
        )
        if (problem := CheckpointManager(folder).write(state)) is not None:
            raise problem
        return folder / f"step-{step:06d}"

    def step(self, role: Role = Role.SOLVER) -> None:
        """One real optimizer step."""
        weights = list(self.optimizers[role].parameters.values())
        self.optimizers[role].step([lambda: sum(((w - 0.1) ** 2).sum() for w in weights)])  # type: ignore[list-item]


def make_model() -> Model:
    backbone = load_backbone("tiny", device="cpu", dtype="float32", lora=LoraSettings(rank=1, alpha=2.0))
    optimizers = {
        role: RoleOptimizer(backbone.trainable(role), 1e-3, 0.01, 1.0, Accelerator(cpu=True)) for role in Role
    }
    model = Model(backbone, optimizers)
    model.step()
    return model


@pytest.fixture(scope="session")
def model() -> Model:
    """Shared: tests only save it."""
    torch.set_num_threads(1)
    return make_model()


@pytest.fixture
def own_model() -> Model:
    """A model of the test's own, to load into and to move."""
    return make_model()


@dataclass
class Faults:
    """Lets the ``at``-th write below ``folder`` fail with ENOSPC; counts them."""

    folder: Path | None = None
    at: int = 0
    seen: list[str] = field(default_factory=list)

    def meet(self, what: str, path: object) -> None:
        text = os.fsdecode(path) if isinstance(path, str | bytes | os.PathLike) else ""
        if self.folder is None or (os.path.isabs(text) and not text.startswith(str(self.folder))):
            return
        self.seen.append(f"{what} {os.path.basename(text)}")
        if len(self.seen) == self.at:
            raise OSError(errno.ENOSPC, "No space left on device", text)

    def arm(self, folder: Path, at: int) -> None:
        self.folder, self.at, self.seen = folder, at, []

    def disarm(self) -> None:
        self.folder = None


_FAULTS = Faults()
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "os.mkdir" and os.path.isdir(arguments[0]):
        return  # that it is there is said before that there is no space
    writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & _WRITING
    if writes or event in ("os.mkdir", "os.rename"):
        _FAULTS.meet(event, arguments[0])


sys.addaudithook(_audit)


@pytest.fixture
def faults(monkeypatch: pytest.MonkeyPatch) -> Iterator[Faults]:
    """Every open for writing, write, fsync, mkdir and rename, and every file that safetensors writes, may fail."""
    real_open, real_save = io.open, asg_core.training.checkpoint.save_file

    def fsync(descriptor: int) -> None:
        _FAULTS.meet("fsync", "")

    def save_file(tensors: Any, path: Path, metadata: Any = None) -> None:
        _FAULTS.meet("save", path)
        real_save(tensors, path, metadata)

    def open_file(file: Any, mode: str = "r", *rest: Any, **options: Any) -> Any:
        handle = real_open(file, mode, *rest, **options)
        if _FAULTS.folder is not None and set(mode) & set("wax+"):
            write = handle.write

            def failing(data: Any) -> Any:
                _FAULTS.meet("write", file)
                return write(data)

            handle.write = failing
        return handle

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(io, "open", open_file)
    monkeypatch.setattr(builtins, "open", open_file)
    for module in (asg_core.training.checkpoint, asg_core.models.lora):
        monkeypatch.setattr(module, "save_file", save_file)
    yield _FAULTS
    _FAULTS.disarm()


SMALL: dict[str, Any] = {
    "steps": 4,
    "images_per_step": 1,
    "evaluate": False,
    "checkpoint_every_steps": 2,
    "schedule": {"ratio": (1, 1)},
    "lora": {"rank": 2, "alpha": 4.0},
    "ask": {"max_new_tokens": 12, "spec_max_new_tokens": 48, "questions_per_image": 2},
    "solve": {"max_new_tokens": 3, "framings": 3, "caption_max_new_tokens": 4},
    "generate": {"prompts_per_step": 1, "candidates": 2},
    "optimizer": {"lr_proposer": 1e-3, "lr_solver": 1e-3, "lr_generator": 1e-3},
}


@pytest.fixture
def small(scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., RunConfig]:
    """Configurations of runs that take about a second; their reports have no plots."""
    monkeypatch.setattr("asg_core.runs.report.render.draw_panels", lambda *_: [])

    def make(out: str = "run", **changes: Any) -> RunConfig:
        return RunConfig.model_validate({**SMALL, "images": scenes, "out": tmp_path / out, **changes})

    return make


@pytest.fixture(scope="session")
def straight(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of the ``small`` settings that nothing happened to."""
    out = tmp_path_factory.mktemp("straight") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("asg_core.runs.report.render.draw_panels", lambda *_: [])
        return Trainer(RunConfig.model_validate({**SMALL, "images": scenes, "out": out})).run().out


def records(run: Path) -> list[dict[str, Any]]:
    """Metrics without wall times."""
    return [{k: v for k, v in r.items() if k != "seconds"} for r in read_json_lines(run / "metrics.jsonl")]


@pytest.fixture
def metrics() -> Callable[[Path], list[dict[str, Any]]]:
    """Metrics of a run folder without wall times."""
    return records


@pytest.fixture
def messages() -> tuple[Any, list[str]]:
    """A display and the list of what it was told to say."""
    from asg_core.runs.console import TrainingDisplay

    said: list[str] = []

    class Listening(TrainingDisplay):
        def message(self, text: str) -> None:
            said.append(text)

    return Listening(4, stream=io.StringIO()), said


class Scripted:
    """The embedded backbone, some of whose calls are replaced: ``Scripted(tiny, solve=function(call, *arguments))``.

    Each replacement gets the real call as its first argument. ``steps`` counts understanding steps, by their one ask.
    """

    def __init__(self, inner: Backbone, **replaced: Callable[..., Any]) -> None:
        self.__dict__.update(inner=inner, replaced=replaced, steps=0)

    def __getattr__(self, name: str) -> Any:
        real = getattr(self.__dict__["inner"], name)
        if name == "ask":
            self.__dict__["steps"] += 1
        if name not in self.__dict__["replaced"]:
            return real
        return lambda *arguments, **options: self.__dict__["replaced"][name](real, *arguments, **options)


@pytest.fixture
def scripted() -> type[Scripted]:
    """Make a scripted backbone."""
    return Scripted


@pytest.fixture
def tiny(library: Library) -> Iterator[Backbone]:
    """The embedded backbone with adapters of rank 2, as newly loaded."""
    load = partial(load_backbone, "tiny", device="cpu", dtype="float32", lora=LoraSettings(rank=2, alpha=4.0))
    with library.lend("tiny, rank 2", load) as backbone:
        yield backbone


@pytest.fixture
def two(model: Any, tmp_path: Path) -> Path:
    """A folder with the good checkpoints of steps 2 and 4."""
    model.save(tmp_path / "c", 2)
    model.save(tmp_path / "c", 4)
    return tmp_path / "c"


def names(folder: Path) -> list[str]:
    """Names of what lies in ``folder``, sorted."""
    return sorted(p.name for p in folder.iterdir())
