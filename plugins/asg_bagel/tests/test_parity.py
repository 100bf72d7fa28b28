"""Upstream's recorded numbers, every one of them; and the replay notices what it should."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from asg_bagel.parity import replay
from asg_core.testing import ParityReport, run_parity


def failures(report: ParityReport) -> list[str]:
    return [f"{case.name}: {case.error} > {case.tolerance} {case.note}" for case in report.cases if not case.passed]


@pytest.fixture
def copy(golden: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(golden, tmp_path / "golden"))


def test_every_recorded_case_agrees(golden: Path) -> None:
    report = run_parity(replay, golden)
    assert failures(report) == []
    assert len(report.cases) > 300
    kinds = {case.name.split("/")[0].split(" ")[0] for case in report.cases}
    assert kinds >= {"tokenizer", "resize", "preproc", "und", "logprob", "gen", "vae", "train"}


def test_differences_are_far_below_the_tolerance(golden: Path) -> None:
    assert max(case.error for case in run_parity(replay, golden).cases) < 5e-5


def test_a_tensor_or_case_nobody_knows_fails(copy: Path) -> None:
    tensors = load_file(copy / "cases.safetensors")
    save_file({**tensors, "und/a/attention": torch.zeros(2)}, copy / "cases.safetensors")
    manifest = json.loads((copy / "manifest.json").read_text())
    (copy / "manifest.json").write_text(json.dumps({**manifest, "video/a": {"kind": "video"}}))
    assert [line.split(":")[0] for line in failures(run_parity(replay, copy))] == [
        "unknown tensor und/a/attention",
        "unknown case video/a",
    ]


@pytest.mark.parametrize(
    ("tensor", "hurt"),
    [
        ("language_model.model.layers.1.self_attn.q_norm.weight", {"und", "logprob", "gen", "train"}),
        ("language_model.model.layers.1.mlp_moe_gen.up_proj.weight", {"gen", "train"}),
        ("vit_model.vision_model.post_layernorm.weight", {"und", "logprob", "gen"}),
    ],
)
def test_a_changed_weight_is_noticed_exactly_where_it_acts(copy: Path, tensor: str, hurt: set[str]) -> None:
    file = copy / "checkpoint" / "ema.safetensors"
    weights = load_file(file)
    weights[tensor] = weights[tensor] * 1.05
    save_file(weights, file)
    assert {line.split("/")[0] for line in failures(run_parity(replay, copy))} == hurt
