"""Runs whose checkpoints cannot be written, or are not there."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import asg_core.training.checkpoint as checkpoint
from asg_core import RunConfig, Trainer
from asg_core.backbones.interface import Role
from asg_core.errors import CheckpointError, RunFolderError

from .conftest import names


def test_a_run_whose_disk_is_full_for_a_while_warns_goes_on_and_saves_later(
    small: Callable[..., RunConfig], messages: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    display, said = messages
    real = checkpoint._write
    full = {1, 2}

    def write(folder: Path, state: Any, extra: Any) -> None:
        if state.step in full:
            raise OSError(28, "No space left on device")
        real(folder, state, extra)

    monkeypatch.setattr(checkpoint, "_write", write)
    out = Trainer(small(steps=3, checkpoint_every_steps=1), display=display).run().out
    warnings = [m for m in said if m.startswith("warning")]
    assert len(warnings) == 2
    assert all("No space left on device" in m and "free some space" in m for m in warnings)
    assert names(out / "checkpoints") == ["step-000003"]


def test_a_run_that_cannot_save_its_end_says_so(
    small: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "_write", write)
    with pytest.raises(CheckpointError, match="step 1 could not be written") as raised:
        Trainer(small(steps=1)).run()
    assert raised.value.exit_code == 5


def test_metrics_that_cannot_be_written_end_the_run_with_one_error_and_it_resumes(
    small: Callable[..., RunConfig], faults: Any, metrics: Any
) -> None:
    straight = Trainer(small("straight", steps=3)).run().out
    config = small("full", steps=3)
    assert config.out is not None
    trainer = Trainer(config)
    real = trainer._record

    def record(row: Any, items: Any) -> None:
        if row["step"] == 3:
            faults.arm(config.out / "metrics.jsonl", 2)
        real(row, items)

    trainer._record = record  # type: ignore[method-assign]
    with pytest.raises(RunFolderError, match="cannot be written") as raised:
        trainer.run()
    faults.disarm()
    assert "No space left" in raised.value.why
    assert "resume=" in raised.value.fix
    assert metrics(Trainer.resume(config.out).run().out) == metrics(straight)


def test_too_little_space_is_refused_before_anything_is_written(
    small: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch, own_model: Any
) -> None:
    config = small()
    adapters = 4 * sum(p.numel() for role in Role for p in own_model.backbone.trainable(role).values())
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=9 * adapters))
    with pytest.raises(RunFolderError, match="too full") as raised:
        Trainer(config, backbone=own_model.backbone).run()
    assert "MiB are free" in raised.value.why
    assert config.out is not None
    assert not config.out.exists()


def test_a_run_without_a_checkpoint_starts_again_and_one_with_only_damaged_ones_does_not(
    small: Callable[..., RunConfig], messages: Any, metrics: Any
) -> None:
    display, said = messages
    out = Trainer(small(steps=1, checkpoint_every_steps=1)).run().out
    first = metrics(out)
    shutil.rmtree(out / "checkpoints" / "step-000001")
    Trainer.resume(out, display=display).run()
    assert any("starting again" in m for m in said)
    assert metrics(out) == first
    (out / "checkpoints" / "step-000001" / "state.json").unlink()
    with pytest.raises(CheckpointError, match="no usable checkpoint"):
        Trainer.resume(out).run()
    assert metrics(out) == first
