"""Checkpoints that cannot be lost: damage is named and passed over, and no failure takes a good step away."""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import asg_core.training.checkpoint as checkpoint
import asg_core.training.checkpoint_files as checkpoint_files
from asg_core.errors import CheckpointError
from asg_core.training.checkpoint_files import is_good, newest_good, steps, verify
from asg_core.training.state import set_random_state

FILES = (
    "manifest.json",
    "state.json",
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
    file.write_text(json.dumps({**json.loads(file.read_text()), "schema": 3}))
    error = fallback(two)
    assert "schema 3" in error.what
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
        '{"schema": 2}',
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
    step = two / "step-000004"
    for name in ("optimizer-solver.safetensors", "adapters/solver/adapter_model.safetensors"):
        file = step / name
        before, manifest = file.read_bytes(), (step / "manifest.json").read_text()
        file.write_bytes(struct.pack("<Q", length) + b"{" * 64)
        digest = checkpoint_files.sha256(file)
        rewritten(two, lambda m, name=name, digest=digest: {**m, "sha256": {**m["sha256"], name: digest}})
        verify(step)
        with pytest.raises(CheckpointError, match="does not fit this run"):
            checkpoint.load(step, model.backbone, model.optimizers)
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
    (stream,) = verify(two / "step-000004")["random"]
    with pytest.raises(CheckpointError), checkpoint.fitting("step 4"):
        set_random_state({**stream, "numpy": numpy_state})
