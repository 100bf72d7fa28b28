"""``benchmarks/gpu.py`` from end to end, each plugin: the fixture's size on the CPU, the released size on a GPU."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

import gpu
import gpu_precision

PLUGINS = pytest.mark.parametrize("plugin", ["bagel", "blip3o", "vargpt"])
SECTIONS = {
    "precision": 4,
    "build": 1,
    "replay": 5,
    "prefill": 1,
    "decode": 3,
    "image": 2,
    "understanding step": 4,
    "generation step": 3,
    "syncs": 5,
    "decode captured": 8,
    "long understanding step": 4,
    "long understanding step captured": 4,
    "understanding step x2": 5,
    "long understanding step x2": 5,
    "generation step x2": 4,
    "profile": 1,
    "sequential understanding step": 3,
    "sequential generation step": 3,
    "decode compiled": 6,
}
"""Rows of each section."""


def run(plugin: str, *words: str, out: Path) -> tuple[int, dict[str, object], list[dict[str, object]]]:
    """Exit code, header, rows."""
    pytest.importorskip(f"asg_{plugin}", reason=f"asg-{plugin} is not installed")
    code = gpu.main([plugin, "--json", str(out), *words])
    data = json.loads(out.read_text(encoding="utf-8"))
    return code, data, data["backbones"][plugin]


@PLUGINS
def test_every_section_gives_finite_numbers(plugin: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--device", "cpu", "--tiny", "--device-name", "h100")
    code, data, rows = run(plugin, *words, out=tmp_path / "out.json")
    assert (code, data["device"], data["dtype"], data["scale"]) == (0, "cpu", "bfloat16", "tiny")
    assert {row["section"] for row in rows if row["status"] != "ok"} == {"profile"}, "which needs a CUDA device"
    found = [row["section"] for row in rows]
    assert {section: found.count(section) for section in found} == SECTIONS
    assert all(math.isfinite(float(str(row["value"]))) for row in rows if row["section"] != "profile")
    precision = [row for row in rows if row["section"] == "precision"]
    assert all(0 < float(str(row["value"])) < float(str(row["limit"])) for row in precision)
    bounded = [row for row in rows if row["bound"] is not None]
    assert {str(row["section"]) for row in bounded} >= {"prefill", "decode", "image", "understanding step"}
    # a slope between two clock readings may be anything on a busy machine
    assert all(0 < float(str(row["roofline_share"])) < 1 for row in bounded if "decode" not in str(row["section"]))
    steps = [row for row in rows if row["name"] in ("1 images", "2 images") and "sequential" not in str(row["section"])]
    assert len(steps) == 7
    assert all(float(str(row["planned_gib"])) > 0 for row in steps)
    table = capsys.readouterr().out
    assert all(f"| {plugin} | {section} |" in table for section in SECTIONS)


@PLUGINS
def test_without_time_nothing_is_dropped(plugin: str, tmp_path: Path) -> None:
    code, _, rows = run(plugin, "--device", "cpu", "--tiny", "--minutes", "0", out=tmp_path / "out.json")
    assert code == 0
    assert {row["section"] for row in rows} == SECTIONS.keys() - {"build"}
    assert all(row["status"] == "not run" and "out of time" in str(row["note"]) for row in rows)


@PLUGINS
def test_only_what_is_asked_for_runs(plugin: str, tmp_path: Path) -> None:
    words = ("--device", "cpu", "--tiny", "--only", "prefill, replay")
    _, _, rows = run(plugin, *words, out=tmp_path / "out.json")
    assert list(dict.fromkeys(row["section"] for row in rows)) == ["build", "replay", "prefill"]


@PLUGINS
def test_a_wrong_model_fails_the_precision_check(plugin: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights of the two models that differ are found, whatever follows still runs, and the exit code says so."""
    monkeypatch.setattr(gpu_precision, "_copy_weights", lambda source, target: _shake(target))
    words = ("--device", "cpu", "--tiny", "--only", "precision,prefill")
    code, _, rows = run(plugin, *words, out=tmp_path / "out.json")
    assert code == 1
    status = {row["name"]: row["status"] for row in rows}
    assert (status["logits"], status["model"], status["image and prompt"]) == ("failed", "ok", "ok")


def _shake(backbone: object) -> None:
    stream = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in backbone.model.parameters():  # type: ignore[attr-defined]
            parameter += 0.02 * torch.randn(parameter.shape, generator=stream)


@PLUGINS
@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device with 80 GB")
def test_the_released_size_on_a_gpu(plugin: str, tmp_path: Path) -> None:
    code, _, rows = run(plugin, "--minutes", "3", out=tmp_path / "out.json")
    assert code == 0
    assert {row["status"] for row in rows if row["section"] in ("precision", "replay", "decode")} == {"ok"}
