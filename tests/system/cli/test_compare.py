"""``asg eval --out`` and ``asg compare``: stored scores, their protocols, and refusals."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from asg_core.backbones.interface import Role
from asg_core.backbones.loading import load_backbone
from asg_core.cli import main
from asg_core.runs.configuration import load_run_config, write_run_config

from .conftest import Call


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run a command that must fail with the given code; returns its message."""

    def run(expected: int, *words: object) -> str:
        code = main([str(word) for word in words])
        err = capsys.readouterr().err
        assert code == expected, err
        return err

    return run


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder whose adapters have an effect."""
    folder = tmp_path_factory.mktemp("trained")
    backbone = load_backbone("tiny", device="cpu")
    generator = torch.Generator().manual_seed(0)
    write_run_config(load_run_config(None, ["backbone=tiny", "seed=5"]), folder / "config.yaml")
    for role in Role:
        with torch.no_grad():
            for parameter in backbone.trainable(role).values():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
        backbone.save_role(role, folder / "adapters" / role.value)
    return folder


@pytest.fixture(scope="module")
def scored(run_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What ``asg eval --out`` wrote: ``base`` alone, and ``run`` with both models."""
    root = tmp_path_factory.mktemp("scored")
    assert main(["eval", "--limit", "3", "--out", str(root / "base"), "seed=5"]) == 0
    assert main(["eval", "--limit", "3", "--out", str(root / "run"), "--run", str(run_folder)]) == 0
    return root


def test_base_and_evolved_are_compared_as_eval_compares_them(call: Call, scored: Path, run_folder: Path) -> None:
    printed = json.loads(call("eval", "--limit", 3, "--run", run_folder, "--json"))["rows"]
    assert any(row["difference"] != 0 for row in printed)
    alone = json.loads(call("compare", scored / "run", "--json"))
    across = json.loads(call("compare", scored / "base", scored / "run", "--json"))
    assert alone["rows"] == across["rows"] == printed
    files = (scored / "base" / "before.json", scored / "run" / "after.json")
    assert json.loads(call("compare", *files, "--json"))["rows"] == printed
    table = call("compare", scored / "base", scored / "run")
    assert str(files[0]) in table
    assert f"{100 * printed[0]['difference']:+.1f}" in table


def test_protocols_are_beside_the_scores_and_name_the_adapters(scored: Path) -> None:
    assert set(json.loads((scored / "base" / "protocol.json").read_text())["scores"]) == {"before"}
    scores = json.loads((scored / "run" / "protocol.json").read_text())["scores"]
    assert set(scores) == {"before", "after"}
    assert scores["before"]["adapters"] is None
    assert set(scores["after"]["adapters"]) == {"proposer", "solver", "generator"}
    assert scores["after"]["items"]["limit"] == 3


def test_protocols_that_differ_are_refused_and_every_difference_is_named(
    call: Call, refused: Callable[..., str], scored: Path, tmp_path: Path
) -> None:
    call("eval", "--limit", 2, "--out", tmp_path / "other", "seed=6")
    message = refused(2, "compare", tmp_path / "other", scored / "run")
    assert "seed: 6 / 5" in message
    assert "items.limit: 2 / 3" in message
    assert "items.sha256" in message
    assert "versions" not in message


def test_a_score_without_its_protocol_is_refused(refused: Callable[..., str], scored: Path, tmp_path: Path) -> None:
    (tmp_path / "after.json").write_bytes((scored / "run" / "after.json").read_bytes())
    assert "has no protocol" in refused(2, "compare", scored / "base", tmp_path / "after.json")
    assert "holds no score" in refused(6, "compare", tmp_path / "nothing", scored / "run")
    assert "holds no score" in refused(6, "compare", scored / "base")
    (tmp_path / "before.json").write_text('[{"a": 1}]')
    assert "not a stored evaluation" in refused(6, "compare", tmp_path / "before.json", scored / "run")


def test_one_file_cannot_be_compared_with_itself(refused: Callable[..., str], scored: Path) -> None:
    assert "one score" in refused(2, "compare", scored / "run" / "after.json")


def test_scores_are_never_overwritten(refused: Callable[..., str], scored: Path) -> None:
    before = (scored / "base" / "before.json").read_bytes()
    assert "holds scores already" in refused(6, "eval", "--limit", 2, "--out", scored / "base")
    assert (scored / "base" / "before.json").read_bytes() == before


def test_a_trained_run_can_be_compared(call: Call, scenes: Path, tmp_path: Path, monkeypatch: Any) -> None:
    from asg_core.tiny import evaluation

    for name in ("QUESTIONS", "DRAWINGS", "VALIDATION"):
        monkeypatch.setattr(evaluation, name, 6)
    out = tmp_path / "run"
    call("train", f"images={scenes}", f"out={out}", "steps=1", "images_per_step=2", "seed=2")
    rows = json.loads((out / "summary.json").read_text())["evaluation"]
    assert json.loads(call("compare", out, "--json"))["rows"] == rows
    call("eval", "--out", tmp_path / "base", "seed=2")
    assert json.loads(call("compare", tmp_path / "base", out, "--json"))["rows"] == rows
