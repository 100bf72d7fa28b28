"""The recorded numbers of the original implementation, all of them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from asg_vargpt.parity import replay
from safetensors.torch import load_file, save_file

from asg_core.testing import ParityReport, run_parity


@pytest.fixture(scope="module")
def report(golden: Path) -> ParityReport:
    """One replay of the recorded fixture."""
    return run_parity(replay, golden)


def test_every_recorded_case_passes(report: ParityReport) -> None:
    assert [case for case in report.cases if not case.passed] == []
    assert report.passed


def test_bits_and_ids_are_compared_exactly(report: ParityReport) -> None:
    exact = {case.name for case in report.cases if case.tolerance == 0}
    assert {"train.gt_bits", "train_bsc.gt_bits", "und.greedy_ids", "gen.s6.bits drawn", "pre.pixel_values"} <= exact


@pytest.fixture
def altered(golden: Path, tmp_path: Path) -> Path:
    """A copy of the fixture to alter."""
    return Path(shutil.copytree(golden, tmp_path / "golden"))


def test_an_altered_or_unknown_case_fails_and_is_named(altered: Path) -> None:
    tensors = load_file(altered / "cases.safetensors")
    tensors["gen.s2.bits"] = 1 - tensors["gen.s2.bits"]
    tensors["new.case"] = tensors["gen.s0.bits"].clone()
    save_file(tensors, altered / "cases.safetensors")
    manifest = json.loads((altered / "manifest.json").read_text(encoding="utf-8"))
    manifest["train"]["loss_text_ce"] += 0.01
    manifest["new_case"] = 1
    (altered / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    failed = {case.name for case in run_parity(replay, altered).cases if not case.passed}
    expected = {"gen.s2.bits drawn", "train.loss_text_ce", "unknown tensor new.case", "unknown case new_case"}
    assert expected <= failed
    assert "und.step_logits" not in failed
