"""A run may be killed at any moment: resumed, it is bit for bit the run that nobody killed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from devkit import sizes

MATRIX = Path(__file__).with_name("crash_matrix.py")


@pytest.fixture(scope="module")
def matrix(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The outcome of every attempt: at one point in five by default, at every point before a release."""
    stride = 1 if sizes.FULL else sizes.SHARE
    done = subprocess.run(
        [sys.executable, str(MATRIX), str(tmp_path_factory.mktemp("crash")), str(stride)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=1800,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_a_run_killed_at_any_point_and_resumed_equals_one_that_was_not(matrix: dict[str, Any]) -> None:
    """Weights, moments, windows, random streams, samples, metrics and the next question; no line twice or missing."""
    assert matrix["failures"] == []
    assert matrix["tried"] >= len(matrix["labels"]) // matrix["stride"]


def test_the_points_cover_every_write_and_every_stage_of_a_step(matrix: dict[str, Any]) -> None:
    labels = matrix["labels"]
    assert len(labels) > 150
    for stage in ("ask", "solve", "token_logits", "generate", "generation_loss", "embed"):
        assert f"in {stage}" in labels
    for stage in ("AdamW.step", "observe"):
        assert f"before {stage}" in labels
        assert f"after {stage}" in labels
    step = "checkpoints/.tmp-step-000003"
    for name in (
        "config.yaml.tmp",
        "metrics.jsonl",
        "quarantine.jsonl",
        "samples/step-000002.json.tmp",
        f"{step}/adapters/solver/adapter_model.safetensors",
        f"{step}/optimizer-generator.safetensors",
        f"{step}/state.json",
        f"{step}/manifest.json",
        "adapters/proposer/adapter_model.safetensors",
        "summary.json.tmp",
        "report.html.tmp",
    ):
        assert f"write {name}" in labels, name
    assert f"os.rename {step}" in labels
    assert "os.rmdir generator" in labels  # the third checkpoint is one too many
    assert labels[labels.index(f"os.rename {step}") - 1] == "fsync"
