"""Checkpoints that cannot be lost: damage is named and passed over, and no failure takes a good step away."""

from __future__ import annotations

import json
import os
import resource
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import asg_core.training.checkpoint as checkpoint
import asg_core.training.checkpoint_files as checkpoint_files
from asg_core import RunConfig, Trainer
from asg_core.backbones.interface import Role
from asg_core.errors import CheckpointError, RunFolderError
from asg_core.training.checkpoint_files import is_good, newest_good, steps, verify


@pytest.fixture
def two(model: Any, tmp_path: Path) -> Path:
    """A folder with the good checkpoints of steps 2 and 4."""
    model.save(tmp_path / "c", 2)
    model.save(tmp_path / "c", 4)
    return tmp_path / "c"


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


FILES = (
    "manifest.json",
    "state.json",
    "random.safetensors",
    "optimizer-proposer.safetensors",
    "optimizer-solver.safetensors",
    "adapters/solver/adapter_model.safetensors",
    "adapters/generator/adapter_config.json",
)


def fallback(folder: Path) -> CheckpointError:
    """The error of step 4, which must not keep step 2 from being found."""
    found, state, errors = newest_good(folder)
    assert (found.name, state["step"]) == ("step-000002", 2)
    (error,) = errors
    return error


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("place", [0, 0.5, 1])
def test_a_flipped_bit_anywhere_is_noticed(name: str, place: float, two: Path) -> None:
    file = two / "step-000004" / name
    data = bytearray(file.read_bytes())
    data[round(place * (len(data) - 1))] ^= 4
    file.write_bytes(data)
    assert name in fallback(two).why


@pytest.mark.parametrize("name", FILES)
def test_a_missing_or_truncated_file_is_named(name: str, two: Path) -> None:
    file = two / "step-000004" / name
    whole = file.read_bytes()
    for part in (whole[:-1], whole[: len(whole) // 2], b""):
        file.write_bytes(part)
        assert name in fallback(two).why
    file.unlink()
    assert f"{name} is missing" in fallback(two).why


def test_a_newer_schema_is_called_newer(two: Path) -> None:
    file = two / "step-000004" / "manifest.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "schema": 2}))
    error = fallback(two)
    assert "schema 2" in error.what
    assert "newer version" in error.why


def test_a_checkpoint_of_another_step_under_this_name_does_not_count(two: Path) -> None:
    (two / "step-000002").rename(two / "step-000006")
    assert [p.name for p in steps(two) if is_good(p)] == ["step-000004"]


def test_steps_are_ordered_as_numbers_and_other_names_are_left_alone(tmp_path: Path) -> None:
    for name in ("step-999999", "step-1000000", "step-000001", "step-x", "step-1", ".tmp-step-000002", "notes"):
        (tmp_path / name).mkdir()
    assert [p.name for p in steps(tmp_path)] == ["step-1000000", "step-999999", "step-000001"]


def rewritten(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Put another manifest into step 4."""
    file = folder / "step-000004" / "manifest.json"
    file.write_text(json.dumps(change(json.loads(file.read_text()))))


@pytest.mark.parametrize(
    "name", ["../../secret", "/etc/passwd", "adapters/../state.json", "\0", "a" * 5000, "", "\ud800"]
)
def test_names_that_lead_elsewhere_are_never_opened(
    name: str, two: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "secret").write_text("canary")
    opened: list[Path] = []
    real = checkpoint_files.sha256
    monkeypatch.setattr(checkpoint_files, "sha256", lambda file: (opened.append(file), real(file))[1])
    rewritten(two, lambda m: {**m, "sha256": {name: "0" * 64, **m["sha256"]}})
    assert "is missing" in fallback(two).why
    assert all(file.resolve().is_relative_to(two.resolve()) for file in opened)


@pytest.mark.parametrize("kind", ["file", "directory", "whole", "dangling", "pipe", "loop"])
def test_links_and_pipes_count_as_damage(kind: str, two: Path, tmp_path: Path) -> None:
    step = two / "step-000004"
    copy = shutil.copytree(step, tmp_path / "elsewhere")
    if kind == "file":
        (step / "state.json").unlink()
        (step / "state.json").symlink_to(copy / "state.json")
    elif kind == "directory":
        shutil.rmtree(step / "adapters")
        (step / "adapters").symlink_to(copy / "adapters")
    elif kind == "whole":
        shutil.rmtree(step)
        step.symlink_to(copy)
    elif kind == "dangling":
        (step / "extra").symlink_to(tmp_path / "nowhere")
    elif kind == "pipe":
        (step / "state.json").unlink()
        os.mkfifo(step / "state.json")
    else:
        (step / "adapters" / "loop").symlink_to(step, target_is_directory=True)
    assert "not a " in fallback(two).why


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        "3",
        "null",
        '"x"',
        "",
        "{",
        "[" * 200_000,
        '{"a":' * 50_000,
        "NaN",
        '{"schema": 1}',
        "9" * 5000,
        "\ufeff{}",
    ],
)
@pytest.mark.parametrize("name", ["manifest.json", "state.json"])
def test_json_that_is_no_state_is_damage(name: str, text: str, two: Path) -> None:
    (two / "step-000004" / name).write_text(text, encoding="utf-8")
    if name == "state.json":
        digest = checkpoint_files.sha256(two / "step-000004" / name)
        rewritten(two, lambda m: {**m, "sha256": {**m["sha256"], name: digest}})
    assert name in fallback(two).why


@pytest.mark.parametrize(
    "files", [None, [], 3, {}, {"state.json": 3}, {"state.json": None}, {"state.json": {"a": 1}}, {"x": ["y"]}]
)
def test_manifests_that_list_no_files_are_damage(files: object, two: Path) -> None:
    rewritten(two, lambda m: {**m, "sha256": files})
    fallback(two)


def test_files_that_the_manifest_does_not_know_are_damage_but_hidden_ones_are_not(two: Path) -> None:
    (two / "step-000004" / ".DS_Store").write_bytes(b"x")
    assert newest_good(two)[0].name == "step-000004"
    (two / "step-000004" / "adapters" / "more.bin").write_bytes(b"x")
    assert "adapters/more.bin" in fallback(two).why


@pytest.mark.parametrize("length", [0, 8, 2**20, 200 * 2**20, 2**62, 2**64 - 1])
def test_giant_safetensors_headers_are_one_checkpoint_error(length: int, two: Path, model: Any) -> None:
    def load(step: Path, state: dict[str, Any]) -> None:
        checkpoint.load(step, model.backbone, model.optimizers)

    step = two / "step-000004"
    for name in ("random.safetensors", "optimizer-solver.safetensors", "adapters/solver/adapter_model.safetensors"):
        file = step / name
        before, manifest = file.read_bytes(), (step / "manifest.json").read_text()
        file.write_bytes(struct.pack("<Q", length) + b"{" * 64)
        digest = checkpoint_files.sha256(file)
        rewritten(two, lambda m, name=name, digest=digest: {**m, "sha256": {**m["sha256"], name: digest}})
        state = verify(step)
        take = checkpoint.load_random if name == "random.safetensors" else load
        with pytest.raises(CheckpointError, match="does not fit this run"):
            take(step, state)
        file.write_bytes(before)
        (step / "manifest.json").write_text(manifest)


def test_moments_of_another_shape_are_refused(two: Path, model: Any) -> None:
    from safetensors.torch import load_file, save_file

    step = two / "step-000004"
    file = step / "optimizer-solver.safetensors"
    good = load_file(file)
    key = next(k for k in good if k.endswith("exp_avg"))
    for bad in ({key: torch.zeros(3)}, {key: good[key].half()}, {"nothing.exp_avg": good[key]}, {f"{key}x": good[key]}):
        save_file({**good, **bad} if key in bad else bad, file)
        with pytest.raises(CheckpointError, match="does not fit this run"):
            checkpoint.load(step, model.backbone, model.optimizers)


@pytest.mark.parametrize(
    "numpy_state", [["MT19937", [0] * 624, 10**6, 0, 0.0], ["MT19937", [0] * 10, 0, 0, 0.0], ["PCG64"], 3, None, {}]
)
def test_random_states_that_are_none_are_refused(numpy_state: object, two: Path) -> None:
    state = verify(two / "step-000004")
    with pytest.raises(CheckpointError):
        checkpoint.load_random(two / "step-000004", {**state, "random": {**state["random"], "numpy": numpy_state}})


# -- nothing good is ever taken away ----------------------------------------------------------------------------------


def test_a_good_checkpoint_of_the_same_step_is_left_as_it_is(two: Path, model: Any) -> None:
    before = os.stat(two / "step-000004" / "manifest.json")
    model.save(two, 4)
    after = os.stat(two / "step-000004" / "manifest.json")
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)


def test_a_damaged_checkpoint_of_the_same_step_is_replaced(two: Path, model: Any) -> None:
    (two / "step-000004" / "state.json").unlink()
    model.save(two, 4)
    assert newest_good(two)[0].name == "step-000004"


@pytest.mark.parametrize("kind", ["link", "file", "dangling"])
def test_what_is_no_directory_in_its_place_is_replaced_and_not_followed(kind: str, two: Path, model: Any) -> None:
    target = two / "step-000006"
    if kind == "file":
        target.write_text("x")
    else:
        target.symlink_to(two / ("step-000004" if kind == "link" else "nowhere"))
    (two / ".tmp-step-000001").write_text("left by something else")
    model.save(two, 6)
    assert is_good(target)
    assert is_good(two / "step-000004")


def test_damaged_newer_checkpoints_do_not_push_out_the_last_good_one(two: Path, model: Any) -> None:
    model.save(two, 6)
    assert names(two) == ["step-000004", "step-000006"]
    (two / "step-000006" / "random.safetensors").write_bytes(b"")
    model.save(two, 8)
    assert names(two) == ["step-000004", "step-000006", "step-000008"]
    model.save(two, 10)
    assert [p.name for p in steps(two) if is_good(p)] == ["step-000010", "step-000008"]
    assert names(two) == ["step-000008", "step-000010"]


def test_nothing_is_pruned_for_a_checkpoint_that_does_not_verify(
    two: Path, model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = checkpoint.verify

    def lying_disk(path: Path) -> dict[str, Any]:
        if path.name == "step-000006" and path.exists():
            (path / "state.json").write_text("{}")
        return real(path)

    monkeypatch.setattr(checkpoint, "verify", lying_disk)
    with pytest.raises(CheckpointError, match="damaged"):
        model.save(two, 6)
    assert [p.name for p in steps(two) if is_good(p)] == ["step-000004", "step-000002"]


def test_a_full_disk_at_any_write_keeps_the_old_step_and_the_next_try_succeeds(
    tmp_path: Path, model: Any, faults: Any
) -> None:
    folder = tmp_path / "c"
    model.save(folder, 2)
    faults.arm(folder, 0)
    model.save(folder, 4)
    total = len(faults.seen)
    assert total > 30
    for k in range(1, total + 1):
        shutil.rmtree(folder / "step-000004")
        faults.arm(folder, k)
        with pytest.raises(CheckpointError, match="could not be written") as raised:
            model.save(folder, 4)
        faults.disarm()
        assert "No space left" in raised.value.why
        assert is_good(folder / "step-000002"), faults.seen[-1]
        assert newest_good(folder)[2] == []
        assert set(names(folder)) <= {"step-000002", "step-000004"}
        model.save(folder, 4)
        assert newest_good(folder)[0].name == "step-000004"


def test_a_write_that_the_kernel_refuses_is_the_same_error(tmp_path: Path, model: Any) -> None:
    """Not injected: a file size limit makes safetensors' own writes fail."""
    model.save(tmp_path, 2)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(CheckpointError, match="could not be written"):
            model.save(tmp_path, 4)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert names(tmp_path) == ["step-000002"]
    assert is_good(tmp_path / "step-000002")


# -- in a run ---------------------------------------------------------------------------------------------------------


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
