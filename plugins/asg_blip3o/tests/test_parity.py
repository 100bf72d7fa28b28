"""The recorded cases of the original implementation, and that the replay would notice a difference."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from asg_blip3o.parity import replay, setup
from safetensors.torch import load_file, save_file

from asg_core.testing.parity import run_parity


def test_every_recorded_case_is_reproduced(golden: Path) -> None:
    report = run_parity(replay, golden)
    assert [case for case in report.cases if not case.passed] == []
    groups = {case.name.split(".")[0] for case in report.cases}
    assert {"pre", "und0", "und1", "gen", "dec", "loss", "rwr"} <= groups


@pytest.fixture
def fixture(golden: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(golden, tmp_path / "golden"))


def failed(fixture: Path) -> set[str]:
    return {case.name for case in run_parity(replay, fixture).cases if not case.passed}


def test_a_recorded_tensor_or_value_that_nothing_checks_fails_the_replay(fixture: Path) -> None:
    tensors = load_file(fixture / "cases.safetensors")
    save_file({**tensors, "dec.more": tensors["dec.sigmas"].clone()}, fixture / "cases.safetensors")
    manifest = json.loads((fixture / "manifest.json").read_text())
    manifest["cases"]["gen"]["more"] = 1
    manifest["more"] = 1
    (fixture / "manifest.json").write_text(json.dumps(manifest))
    assert {"unknown tensor dec.more", "unknown case cases.gen.more", "unknown case more"} <= failed(fixture)


def test_a_changed_weight_and_a_changed_expectation_are_noticed(fixture: Path) -> None:
    shard = fixture / "checkpoint" / "model-00004-of-00005.safetensors"
    weights = load_file(shard)
    weights["model.dit.model.layers.1.gate"] += 0.05
    save_file(weights, shard, metadata={"format": "pt"})
    tensors = load_file(fixture / "cases.safetensors")
    tensors["und1.greedy_ids"][0, 2] += 1
    save_file(tensors, fixture / "cases.safetensors")
    found = failed(fixture)
    assert {"gen.cond.clip_latents", "loss.loss", "rwr.loss", "und1.greedy_ids"} <= found
    assert not any(name.startswith(("und0", "dec")) for name in found)


def test_the_tolerance_follows_the_size_of_what_is_expected(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[float] = []

    class Run:
        def close(self, name: str, actual: float, expected: float, tolerance: float) -> None:
            seen.append(tolerance)

    setup.close(Run(), "x", 0.0, -50.0)  # type: ignore[arg-type]
    assert seen == [pytest.approx(5e-3)]
