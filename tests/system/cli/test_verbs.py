"""Every verb on the embedded backbone: what it prints is what the model does, and scripts get clean JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from asg_core.backbones.interface import Backbone, Role, TextRequest, TextSampling
from asg_core.backbones.loading import load_backbone
from asg_core.cli import main
from asg_core.config.seeding import derive_seed
from asg_core.method.prompts import FRAMINGS, frame
from asg_core.runs.configuration import load_run_config, write_run_config

Json = Callable[..., Any]


@pytest.fixture
def as_json(call: Callable[..., str]) -> Json:
    """The same with --json, parsed."""
    return lambda *words: json.loads(call(*words, "--json"))


@pytest.fixture(scope="module")
def trained() -> Backbone:
    """The embedded backbone with adapters that have an effect."""
    backbone = load_backbone("tiny", device="cpu")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for role in Role:
            for parameter in backbone.trainable(role).values():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return backbone


@pytest.fixture(scope="module")
def run_folder(trained: Backbone, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder that holds those adapters."""
    folder = tmp_path_factory.mktemp("trained")
    write_run_config(load_run_config(None, ["backbone=tiny", "seed=5"]), folder / "config.yaml")
    for role in Role:
        trained.save_role(role, folder / "adapters" / role.value)
    return folder


@pytest.fixture
def image(scenes: Path) -> Path:
    return min(scenes.glob("*.png"))


QUESTION = "how many shapes are there?"


def test_solve_shows_what_the_definitions_say(as_json: Json, image: Path) -> None:
    result = as_json("solve", image, QUESTION)
    labels = [answer["label"] for answer in result["answers"]]
    assert [answer["framing"] for answer in result["answers"]] == list(FRAMINGS)
    shares = {label: labels.count(label) / 7 for label in labels}
    assert result["votes"] == pytest.approx(shares)
    assert result["h_sc"] == pytest.approx(-sum(p * math.log(p) for p in shares.values()), abs=1e-12)
    assert result["f"] == pytest.approx(max(shares.values()))
    assert result["ste"] is None or result["ste"] >= 0


def test_solve_prints_every_framing_and_both_entropies(call: Callable[..., str], image: Path) -> None:
    out = call("solve", image, QUESTION)
    assert all(framing[:40] in out for framing in FRAMINGS)
    assert "H_sc" in out
    assert "STE" in out
    assert "none" in call("solve", image, QUESTION, "ste.reduce=off").splitlines()[-1]


def test_settings_and_seed_reach_the_model(as_json: Json, image: Path) -> None:
    words = ("solve", image, QUESTION, "solve.temperature=3")
    assert as_json(*words) == as_json(*words)
    assert as_json(*words)["answers"] != as_json(*words, "--seed", "1")["answers"]
    assert as_json(*words, "--seed", "1") == as_json(*words, "seed=1")
    assert len(as_json(*words, "solve.framings=3")["answers"]) == 3


def test_run_uses_the_solver_of_the_run_and_its_seed(
    as_json: Json, image: Path, run_folder: Path, trained: Backbone
) -> None:
    requests = [
        TextRequest(frame(QUESTION, framing), Image.open(image).convert("RGB"), derive_seed(5, "solve", 0, i))
        for i, framing in enumerate(FRAMINGS)
    ]
    settings = load_run_config(run_folder / "config.yaml").solve
    sampling = TextSampling(settings.max_new_tokens, settings.temperature)
    answers = [a["text"] for a in as_json("solve", image, QUESTION, "--run", run_folder)["answers"]]
    assert answers == [s.text for s in trained.solve(requests, sampling)]
    base = [a["text"] for a in as_json("solve", image, QUESTION, "seed=5")["answers"]]
    assert base == [s.text for s in trained.solve(requests, sampling, role=None)]
    assert base != answers


def test_ask_uses_base_or_proposer(as_json: Json, call: Callable[..., str], image: Path, run_folder: Path) -> None:
    rows = as_json("ask", image, "--n", 4)
    assert len(rows) == 4
    assert all((row["question"] is None) != (row["gate"] is None) for row in rows)
    assert rows != as_json("ask", image, "--n", 4, "--run", run_folder)
    lines = call("ask", image, "--n", 4).splitlines()
    assert [row["question"] for row in rows if row["question"]] == [
        x for x in lines if not x.startswith("[no question")
    ]


def test_generate_writes_images_and_prints_their_paths(
    call: Callable[..., str], as_json: Json, run_folder: Path, tmp_path: Path
) -> None:
    words = ("generate", "A red circle, large!", "--n", 2)
    files = [Path(line) for line in call(*words, "--out", tmp_path / "a" / "b").splitlines()]
    assert [f.name for f in files] == ["a-red-circle-large-0-0.png", "a-red-circle-large-0-1.png"]
    pixels = [Image.open(f).convert("RGB").tobytes() for f in files]
    assert len(set(pixels)) == 2
    again = [row["file"] for row in as_json(*words, "--out", tmp_path / "c")]
    assert [Image.open(f).convert("RGB").tobytes() for f in again] == pixels
    drawn = as_json(*words, "--out", tmp_path / "d", "--run", run_folder, "seed=0")
    assert [Image.open(row["file"]).convert("RGB").tobytes() for row in drawn] != pixels
    assert sorted(p.name for p in (tmp_path / "c").iterdir()) == [f.name for f in files]


def test_generate_says_when_it_cannot_write(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("x")
    assert main(["generate", "a circle", "--out", str(tmp_path / "file" / "x")]) == 6
    assert "cannot be written" in capsys.readouterr().err


def test_eval_of_a_run_is_paired_with_the_base(as_json: Json, call: Callable[..., str], run_folder: Path) -> None:
    alone = as_json("eval", "--limit", 2, "seed=5")
    both = as_json("eval", "--limit", 2, "--run", run_folder)
    assert [(r["section"], r["category"], r["n"], r["score"]) for r in alone["rows"]] == [
        (r["section"], r["category"], r["n"], r["before"]) for r in both["rows"]
    ]
    assert any(r["difference"] != 0 for r in both["rows"])
    for r in both["rows"]:
        assert r["difference"] == pytest.approx(r["after"] - r["before"])
        assert r["ci_low"] - 1e-9 <= r["difference"] <= r["ci_high"] + 1e-9
        assert 0 < r["p_value"] <= 1
    table = call("eval", "--limit", 2, "--run", run_folder)
    first = both["rows"][0]
    assert first["section"] in table
    assert f"{100 * first['difference']:+.1f}" in table


def test_a_run_without_its_adapters_is_refused(run_folder: Path, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "config.yaml").write_bytes((run_folder / "config.yaml").read_bytes())
    assert main(["eval", "--run", str(tmp_path)]) == 6
    assert "no adapter of the proposer" in capsys.readouterr().err


def test_train_resume_and_report(call: Callable[..., str], scenes: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    settings = ("images_per_step=2", "evaluate=false", "ask.questions_per_image=2", "generate.candidates=2")
    printed = call("train", f"images={scenes}", f"out={out}", "steps=1", *settings)
    assert printed == f"1 steps, report: {out / 'report.html'}\n"
    assert load_run_config(out / "config.yaml").images_per_step == 2
    assert call("train", f"resume={out}", "steps=2").startswith("2 steps")
    (out / "report.html").unlink()
    assert call("report", out) == f"{out / 'report.html'}\n"
    assert (out / "report.html").stat().st_size > 1000
    assert call("ask", min(scenes.glob("*.png")), "--run", out)


def test_train_prints_the_comparison(call: Callable[..., str], scenes: Path, tmp_path: Path, monkeypatch: Any) -> None:
    from asg_core.tiny import evaluation

    monkeypatch.setattr(evaluation, "QUESTIONS", 14)
    monkeypatch.setattr(evaluation, "DRAWINGS", 6)
    monkeypatch.setattr(evaluation, "VALIDATION", 6)
    printed = call("train", f"images={scenes}", f"out={tmp_path / 'run'}", "steps=1", "images_per_step=2")
    rows = json.loads((tmp_path / "run" / "summary.json").read_text())["evaluation"]
    assert rows
    for row in rows:
        assert row["section"] in printed
    assert "95 % interval" in printed


def test_config_prints_what_train_would_use(call: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("steps: 9\n")
    (tmp_path / "b.yaml").write_text(call("config", tmp_path / "a.yaml", "seed=4"))
    spelled_out = ["seed=4", "backbone_options.compile_decode=false"]
    assert load_run_config(tmp_path / "b.yaml") == load_run_config(tmp_path / "a.yaml", spelled_out)


def test_plugins_lists_manifests(as_json: Json, call: Callable[..., str]) -> None:
    first = as_json("plugins")[0]
    assert (first["name"], first["state"]) == ("tiny", "ok")
    assert "tiny" in [backbone["name"] for backbone in first["backbones"]]
    assert "Apache-2.0" in call("plugins")


def test_doctor_tells_versions_and_no_secret(
    as_json: Json, call: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_very_secret_value")
    report = as_json("doctor")
    assert report["versions"]["torch"] == torch.__version__
    assert report["devices"][0]["device"] == "cpu"
    assert report["problems"] == []
    assert "secret" not in json.dumps(report) + call("doctor")


def test_doctor_fails_without_a_backbone(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("ASG_DISABLE_PLUGINS", "*,tiny")
    assert main(["doctor"]) == 1
    assert "problem: no backbone can be used" in capsys.readouterr().out
