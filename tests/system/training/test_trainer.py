"""Whole runs on the embedded backbone: the run folder, resume, interruption, and errors before anything is written."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from asg_core import RunConfig, Trainer
from asg_core.backbones.interface import Role
from asg_core.errors import CheckpointError
from asg_core.runs.console import TrainingDisplay
from asg_core.runs.folder import read_json_lines
from asg_core.training.checkpoint_files import newest_good
from asg_core.training.finish import RunSummary


@pytest.fixture
def start(config: RunConfig, scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., RunConfig]:
    """A configuration for one run in ``tmp_path``, whose report has no plots: those of ``straight`` are looked at."""
    monkeypatch.setattr("asg_core.runs.report.render.draw_panels", lambda *_: [])
    return partial(settings, config, scenes, tmp_path)


def settings(config: RunConfig, scenes: Path, folder: Path, /, out: str = "run", **changes: Any) -> RunConfig:
    """``config`` for a run in ``folder``."""
    own = {"images": scenes, "out": folder / out, "checkpoint_every_steps": 2, "sample_every_steps": 1}
    own |= {"images_per_step": 2, "generate": {"prompts_per_step": 2, "candidates": 3}}
    return RunConfig.model_validate({**config.model_dump(), **own, **changes})


@pytest.fixture(scope="module")
def straight(config: RunConfig, scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> RunSummary:
    """A finished run of seven steps, to look at: its folder is not to be changed."""
    return Trainer(settings(config, scenes, tmp_path_factory.mktemp("straight"), steps=7)).run()


@pytest.fixture
def copied(straight: RunSummary, tmp_path: Path) -> Path:
    """A copy of its folder, to damage."""
    return shutil.copytree(straight.out, tmp_path / "copied")


def metrics(run: Path) -> list[dict[str, Any]]:
    """Metrics without wall times."""
    return [{k: v for k, v in r.items() if k != "seconds"} for r in read_json_lines(run / "metrics.jsonl")]


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor of every safetensors file below ``folder``."""
    return {
        f"{file.relative_to(folder)}:{name}": tensor
        for file in sorted(folder.rglob("*.safetensors"))
        for name, tensor in load_file(file).items()
    }


def assert_equal_tensors(one: Path, other: Path) -> None:
    """Both folders hold the same tensors, bit for bit."""
    a, b = tensors(one), tensors(other)
    assert a
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


class StopAfter(TrainingDisplay):
    """A display that behaves like a person who presses Ctrl-C during a step."""

    def __init__(self, step: int) -> None:
        super().__init__(10)
        self._at = step

    def step(self, metrics: Any) -> None:
        super().step(metrics)
        if metrics["step"] == self._at:
            os.kill(os.getpid(), signal.SIGINT)


def test_a_run_folder_holds_all_that_is_promised(straight: RunSummary) -> None:
    out = straight.out
    assert straight.steps_done == 7
    records = metrics(out)
    assert [(r["step"], r["kind"][0]) for r in records] == list(zip(range(1, 8), "uuugguu", strict=True))
    assert (out / "report.html").stat().st_size > 10_000
    assert json.loads((out / "summary.json").read_text())["steps_done"] == 7
    for role in Role:
        assert {p.name for p in (out / "adapters" / role.value).iterdir()} == {
            "adapter_config.json",
            "adapter_model.safetensors",
        }
    understanding = json.loads((out / "samples" / "step-000001.json").read_text())
    question = next(q for i in understanding["items"] for q in i["questions"] if q["question"])
    assert len(question["answers"]) == 7
    assert sum(question["votes"].values()) == pytest.approx(1.0)
    generation = json.loads((out / "samples" / "step-000004.json").read_text())
    drawn = next(i for i in generation["items"] if not i["skipped"])
    assert len(drawn["candidates"]) == 3
    for c in drawn["candidates"]:
        assert Image.open(out / "samples" / c["image"]).mode == "RGB"
        assert {"reward", "s_fid", "s_cyc", "s_div", "s_ctr"} <= set(c)


def test_nothing_in_a_run_folder_is_a_pickle(straight: RunSummary) -> None:
    suffixes = {p.suffix for p in straight.out.rglob("*") if p.is_file() and p.name != ".lock"}
    assert suffixes <= {".json", ".jsonl", ".yaml", ".safetensors", ".png", ".html", ".md"}


def test_all_three_roles_learn_in_one_cycle(straight: RunSummary) -> None:
    for role in Role:
        weights = tensors(straight.out / "adapters" / role.value)
        assert any("lora_B" in name and bool((w != 0).any()) for name, w in weights.items())


def test_roles_that_no_step_updated_are_named_with_what_there_was_to_learn_from(
    start: Callable[..., RunConfig], capfd: pytest.CaptureFixture[str]
) -> None:
    nothing_parses = {"ask": {"max_new_tokens": 1, "spec_max_new_tokens": 1}}
    silent = Trainer(start("silent", **nothing_parses)).run()
    assert silent.never_updated == tuple(Role)
    said = "never updated: proposer, solver, generator; 18 of 18 completions were no question; 4 of 4 images got no"
    assert said in capfd.readouterr().err
    assert "never updated: proposer, solver, generator" in silent.report.read_text(encoding="utf-8")
    card = (silent.out / "adapters" / "README.md").read_text(encoding="utf-8")
    assert "**Never updated: proposer, solver, generator.**" in card


def test_only_roles_that_were_to_learn_count_as_never_updated(
    start: Callable[..., RunConfig], capfd: pytest.CaptureFixture[str]
) -> None:
    frozen = {"optimizer": {"lr_proposer": 1e-3, "lr_solver": 0.0, "lr_generator": 1e-3}}
    learned = Trainer(start("learned", schedule={"mode": "understanding"}, **frozen, steps=1)).run()
    resumed = Trainer.resume(learned.out, steps=1).run()
    assert learned.never_updated == resumed.never_updated == ()
    assert json.loads((learned.out / "summary.json").read_text())["never_updated"] == []
    assert "never updated" not in capfd.readouterr().err + learned.report.read_text(encoding="utf-8")


def test_the_same_configuration_gives_the_same_run(start: Callable[..., RunConfig], straight: RunSummary) -> None:
    again = Trainer(start(steps=6)).run().out
    assert metrics(again) == metrics(straight.out)[:6]
    assert_equal_tensors(again / "checkpoints" / "step-000006", straight.out / "checkpoints" / "step-000006")


def test_another_seed_gives_another_run(start: Callable[..., RunConfig], straight: RunSummary) -> None:
    assert metrics(Trainer(start(steps=1, seed=1)).run().out) != metrics(straight.out)[:1]


def test_an_interrupted_and_resumed_run_equals_a_straight_one(
    start: Callable[..., RunConfig], straight: RunSummary
) -> None:
    first = Trainer(start(steps=7), display=StopAfter(3)).run()
    assert first.interrupted
    assert first.steps_done == 3
    second = Trainer.resume(first.out).run()
    assert second.steps_done == 7
    assert metrics(first.out) == metrics(straight.out)
    for name in ("adapters", "checkpoints/step-000007"):
        assert_equal_tensors(first.out / name, straight.out / name)
    saved = [run.out / "checkpoints" / "step-000007" / "state.json" for run in (straight, first)]
    state, resumed = ({k: v for k, v in json.loads(file.read_text()).items() if k != "seconds"} for file in saved)
    assert state == resumed


class StopAtOnce(TrainingDisplay):
    """A display that behaves like a person who presses Ctrl-C once, before the first step."""

    pressed = False

    def message(self, text: str) -> None:
        if not self.pressed:
            self.pressed = True
            os.kill(os.getpid(), signal.SIGINT)


def test_an_interrupt_while_no_step_is_under_way_ends_at_once(start: Callable[..., RunConfig]) -> None:
    config = start()
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        Trainer(config, display=StopAtOnce(5)).run()
    assert config.out is not None
    assert not config.out.exists()
    assert signal.getsignal(signal.SIGINT) is handler


def test_resume_falls_back_to_the_newest_good_checkpoint_and_says_so(straight: RunSummary, copied: Path) -> None:
    newest = copied / "checkpoints" / "step-000007" / "optimizer-solver.safetensors"
    data = bytearray(newest.read_bytes())
    data[-1] ^= 1
    newest.write_bytes(data)
    found, _, errors = newest_good(copied / "checkpoints")
    assert found.name == "step-000006"
    assert "optimizer-solver.safetensors does not have the sha256 that manifest.json records" in errors[0].why
    Trainer.resume(copied, steps=7).run()
    assert metrics(copied) == metrics(straight.out)
    assert_equal_tensors(copied / "checkpoints" / "step-000007", straight.out / "checkpoints" / "step-000007")


@pytest.mark.parametrize("damage", ["manifest", "missing", "schema"])
def test_a_checkpoint_counts_only_when_complete(damage: str, copied: Path) -> None:
    shutil.rmtree(copied / "checkpoints" / "step-000006")
    step = copied / "checkpoints" / "step-000007"
    if damage == "manifest":
        (step / "manifest.json").unlink()
    elif damage == "missing":
        (step / "adapters" / "proposer" / "adapter_model.safetensors").unlink()
    else:
        manifest = json.loads((step / "manifest.json").read_text())
        (step / "manifest.json").write_text(json.dumps({**manifest, "schema": 99}))
    with pytest.raises(CheckpointError, match="no usable checkpoint"):
        newest_good(copied / "checkpoints")


def test_old_checkpoints_are_pruned_but_never_the_last(straight: RunSummary) -> None:
    """Saved were steps 2, 4, 6 and 7."""
    assert sorted(p.name for p in (straight.out / "checkpoints").iterdir()) == ["step-000006", "step-000007"]


def test_a_tracker_gets_every_numeric_metric(start: Callable[..., RunConfig]) -> None:
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    out = Trainer(start(steps=1, trackers=("tensorboard",))).run().out
    files = sorted(out.rglob("events.out.tfevents.*"), key=lambda f: f.stat().st_size)
    events = event_accumulator.EventAccumulator(str(files[-1]))
    events.Reload()
    recorded = [e.value for e in events.Scalars("h_sc")]
    assert recorded == pytest.approx([r["h_sc"] for r in metrics(out)], rel=1e-6)
    assert "reward_proposer" in events.Tags()["scalars"]


def test_training_reads_nothing_but_pixels(
    start: Callable[..., RunConfig], straight: RunSummary, scenes: Path, tmp_path: Path
) -> None:
    """The same pixels under other file names and formats give the same run: no name or metadata is read."""
    renamed = tmp_path / "renamed"
    renamed.mkdir()
    for i, file in enumerate(sorted(p for p in scenes.rglob("*") if p.is_file())):
        Image.open(file).save(renamed / f"{i:06d}.bmp")
    assert metrics(Trainer(start(steps=4, images=renamed)).run().out) == metrics(straight.out)[:4]
