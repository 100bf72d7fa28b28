"""``asg plan`` answers before anything is loaded, in words and in JSON."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from asg_core.cli.main import main

ROW = {"section": "understanding step", "name": "4 images", "value": 12.5, "unit": "s"}


def plan(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, object]:
    assert main(["plan", "--json", *words]) == 0
    data: dict[str, object] = json.loads(capsys.readouterr().out)
    return data


def test_table_names_parts_memory_and_time(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "dtype=float32", "images_per_step=3"]) == 0
    text = capsys.readouterr().out
    for wanted in ("frozen base", "831,216", "understanding step, 3 images", "draw, codes", "no measurement for h100"):
        assert wanted in text


def test_memory_decides_what_fits(capsys: pytest.CaptureFixture[str]) -> None:
    need = plan(capsys)["steps"][0]["bytes"]["peak"] / 2**30  # type: ignore[index]
    for memory, fits in ((need * 1.01, True), (need * 0.99, False)):
        step = plan(capsys, "--memory-gib", f"{memory:.9f}")["steps"][0]  # type: ignore[index]
        assert step["fits"] is fits
        assert (step["images_that_fit"] >= step["images"]) is fits


def test_settings_and_schedule_count(capsys: pytest.CaptureFixture[str]) -> None:
    few, many = (plan(capsys, f"solve.framings={n}")["steps"][0]["bytes"]["decoding"] for n in (2, 7))  # type: ignore[index]
    assert few < many
    only = plan(capsys, "schedule.mode=generation", "generate.prompts_per_step=2")
    assert [(s["kind"], s["images"]) for s in only["steps"]] == [("generation", 2)]  # type: ignore[union-attr, index]


def test_a_measurement_of_the_same_device_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = tmp_path / "gpu.json"
    results.write_text(json.dumps({"device": "NVIDIA H100 80GB HBM3", "backbones": {"tiny": [ROW]}}))
    assert plan(capsys, "--results", str(results))["measured"] == [ROW]
    assert plan(capsys, "--results", str(results), "--device-name", "a100")["measured"] == []
    assert main(["plan", "--results", str(results)]) == 0
    assert "12.50" in capsys.readouterr().out


@pytest.mark.parametrize(
    "words",
    [
        ("--device-name", "abacus"),
        ("--image", "big"),
        ("--image", "0x10"),
        ("--memory-gib", "0"),
        ("--results", "missing.json"),
    ],
)
def test_usage_errors_are_typed(words: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", *words]) == 2
    assert words[1] in capsys.readouterr().err
