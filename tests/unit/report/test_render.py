"""The report of a run: self-contained, escaped, complete, bounded, and tolerant of half-written folders."""

from __future__ import annotations

import base64
import json
import math
import random
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from asg_core.errors import RunFolderError
from asg_core.runs.report.render import render_report

from .page import Page, rendered


@pytest.fixture(scope="module")
def run(runs: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return runs.build_run(tmp_path_factory.mktemp("runs") / "full")


@pytest.fixture(scope="module")
def page(run: Path) -> Page:
    return rendered(run)


def test_page_needs_nothing_but_itself(page: Page) -> None:
    links = [v for name in ("src", "href", "xlink:href", "srcset", "data", "action") for v in page.attributes(name)]
    assert any(link.startswith("data:image/png") for link in links)
    assert [link for link in links if not link.startswith(("data:", "#"))] == []
    assert re.findall(r"https?://|@import|url\((?!#)", page.html) == []
    assert not {"script", "link", "iframe", "object", "embed", "base"} & {tag for tag, _ in page.tags}


def test_model_output_cannot_become_markup(runs: SimpleNamespace, tmp_path: Path) -> None:
    attack = '<script>alert(1)</script>"><img src=x onerror=alert(1)>{{ 7*7 }}\u202e\x00\ud800'
    run = runs.build_run(tmp_path / "<b>run", 6, metrics=False)

    def poison(value: Any) -> Any:
        if isinstance(value, dict):
            # labels of votes are keys that come from the model too
            return {(k if k != "red" else attack): (v if k == "image" else poison(v)) for k, v in value.items()}
        if isinstance(value, list):
            return [poison(v) for v in value]
        return attack if isinstance(value, str) and value not in {"understanding", "generation"} else value

    for file in (run / "samples").glob("*.json"):
        file.write_text(json.dumps(poison(json.loads(file.read_text()))))
    for name in ("summary.json", "quarantine.jsonl"):
        lines = (run / name).read_text().splitlines()
        (run / name).write_text("".join(json.dumps(poison(json.loads(line))) + "\n" for line in lines))
    (run / "config.yaml").write_text(f"backbone: tiny\nbackbone_options: {{x: '{attack[:40]}'}}\n")
    page = rendered(run)
    assert "script" not in {tag for tag, _ in page.tags}
    assert page.attributes("onerror") == []
    assert {v for v in page.attributes("src") if not v.startswith("data:")} == set()
    assert "<b>run" in page.text
    assert "<script>alert(1)</script>" in page.text, "the text itself is shown"
    assert "{{ 7*7 }}" in page.text
    assert "\x00" not in page.html


def test_every_metric_with_values_is_shown(run: Path, page: Page) -> None:
    recorded = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    keys = {k for r in recorded for k, v in r.items() if v is not None} - {"step", "kind", "alarms"}
    assert len(keys) >= 35
    assert keys <= set(page.attributes("data-metric"))
    assert "kl_generator" not in page.attributes("data-metric"), "null throughout"
    assert "constant_answers" in page.text


def test_comparison_table_holds_the_numbers_of_the_summary(run: Path, page: Page) -> None:
    rows = json.loads((run / "summary.json").read_text())["evaluation"]
    shown = [float(attrs["value"] or "nan") for tag, attrs in page.tags if tag == "data"]
    assert shown == [row[k] for row in rows for k in ("before", "after", "difference", "ci_low", "ci_high", "p_value")]
    for row in rows:
        assert f"{100 * row['before']:.1f}" in page.text
        assert f"{100 * row['difference']:+.1f}".replace("-", "−") in page.text


def test_verdict_follows_the_interval(runs: SimpleNamespace, page: Page) -> None:
    classes = [(attrs.get("class") or "").split() for tag, attrs in page.tags if tag == "tr"]
    expected = ["gain" if low > 0 else "loss" if high < 0 else "unclear" for *_, low, high, _ in runs.ROWS]
    assert [c[-1] for c in classes if {"whole", "part"} & set(c)] == expected


def test_torn_last_line_is_skipped_and_reported(runs: SimpleNamespace, tmp_path: Path) -> None:
    run = runs.build_run(tmp_path / "run", 10, metrics=False)
    whole = (run / "metrics.jsonl").read_text()
    (run / "metrics.jsonl").write_text(whole[: len(whole) - 30])
    page = rendered(run)
    assert "last line of metrics.jsonl is incomplete" in page.text
    assert "6 understanding, 3 generation, of 10 planned" in page.text


def test_broken_middle_line_and_repeated_step(runs: SimpleNamespace, tmp_path: Path) -> None:
    run = runs.build_run(tmp_path / "run", 5, sample_every=9, metrics=False)
    lines = (run / "metrics.jsonl").read_text().splitlines()
    again = json.loads(lines[4]) | {"questions": None, "reward_generator": 0.987654}
    (run / "metrics.jsonl").write_text("\n".join([lines[0], "[1,", *lines[1:], json.dumps(again)]) + "\n")
    page = rendered(run)
    assert "Line 2 of metrics.jsonl" in page.text
    assert "0.9877" in page.text, "a step recorded again replaces the first record"
    assert "3 understanding, 2 generation" in page.text


@pytest.mark.parametrize("missing", ["samples", "summary.json", "quarantine.jsonl", "config.yaml", "metrics.jsonl"])
def test_each_part_may_be_missing(runs: SimpleNamespace, tmp_path: Path, missing: str) -> None:
    run = runs.build_run(tmp_path / "run", 6, metrics=False)
    (run / missing).rename(tmp_path / "away")
    expected = {
        "samples": "No samples of understanding steps were written",
        "summary.json": "still running, or killed",
        "quarantine.jsonl": "None was quarantined",
        "config.yaml": "config.yaml could not be read",
        "metrics.jsonl": "No step was recorded",
    }[missing]
    assert expected in rendered(run).text


def test_run_of_zero_steps_without_evaluation(runs: SimpleNamespace, tmp_path: Path) -> None:
    run = runs.build_run(tmp_path / "run", 0)
    summary = json.loads((run / "summary.json").read_text())
    empty = dict.fromkeys(summary) | {"backbone": "tiny", "steps_done": 0, "interrupted": False}
    (run / "summary.json").write_text(json.dumps(empty))
    text = rendered(run).text
    assert "No step was recorded" in text
    assert "This run has no evaluation" in text
    assert "None" not in text.replace("None was quarantined", "").replace("None.", "")


def test_nulls_everywhere_still_render(runs: SimpleNamespace, tmp_path: Path) -> None:
    run = runs.build_run(tmp_path / "run", 6, metrics=False)
    for file in (run / "samples").glob("*.json"):
        sample = json.loads(file.read_text())
        nulls = dict.fromkeys(sample["items"][0])
        questions = [dict.fromkeys(q) for q in sample["items"][0]["questions"]]
        candidates = [{"reward": None, "answers": [{"question": None, "answers": None}]}]
        sample["items"] = [nulls, nulls | {"questions": questions, "candidates": candidates}, None]
        file.write_text(json.dumps(sample))
    records = [dict.fromkeys(runs.metrics_record(s, 3, random.Random(0))) | {"step": s} for s in (1, 2, 3)]
    runs.write_lines(run / "metrics.jsonl", [*records, {"step": 4, "h_sc": math.nan, "alarms": None}])
    rows = [dict.fromkeys(runs.ROW_KEYS) | {"section": "s", "category": c} for c in ("all", "x")]
    (run / "summary.json").write_text(json.dumps({"evaluation": rows}))
    page = rendered(run)
    assert "image not available" in page.text
    assert re.findall(r"\b(nan|none)\b", page.text.replace("None was quarantined", ""), re.IGNORECASE) == []


def test_damaged_files_are_named(runs: SimpleNamespace, tmp_path: Path) -> None:
    run = runs.build_run(tmp_path / "run", 6, metrics=False)
    (run / "summary.json").write_text('{"backbone": "ti')
    (run / "samples" / "step-000001.json").write_text("[]")
    (run / "samples" / "step-000006" / "00.png").write_bytes(b"\x89PNG not really")
    (run / "config.yaml").write_text("steps: [1,\n")
    text = rendered(run).text
    for name in ("summary.json", "step-000001.json", "config.yaml is not valid YAML", "image not available"):
        assert name in text


def test_interrupted_and_control_runs_say_so(runs: SimpleNamespace, tmp_path: Path) -> None:
    run = runs.build_run(tmp_path / "run", 5, metrics=False)
    (run / "summary.json").write_text(json.dumps({"backbone": "tiny", "steps_done": 5, "interrupted": True}))
    (run / "config.yaml").write_text("steps: 50\nablation: random_rewards\n")
    text = rendered(run).text
    assert "ended early" in text
    assert "This is an ablation" in text
    assert "of 50 planned" in text


def test_same_folder_gives_the_same_bytes_and_no_leftovers(runs: SimpleNamespace, tmp_path: Path) -> None:
    run = runs.build_run(tmp_path / "run", 12, metrics=False)
    before = {p.name for p in run.iterdir()}
    first = render_report(run).read_bytes()
    assert render_report(run).read_bytes() == first
    assert {p.name for p in run.iterdir()} == before | {"report.html"}


def test_ids_are_unique_and_references_resolve(page: Page) -> None:
    ids = page.attributes("id")
    assert len(ids) == len(set(ids))
    links = [v[1:] for name in ("href", "xlink:href") for v in page.attributes(name) if v.startswith("#")]
    assert set(links) | set(re.findall(r"url\(#([^)]+)\)", page.html)) <= set(ids)


@pytest.mark.parametrize("content", [None, "empty", "other"])
def test_folder_without_a_run_is_refused(tmp_path: Path, content: str | None) -> None:
    folder = tmp_path / "no-run"
    if content:
        folder.mkdir()
    if content == "other":
        (folder / "notes.txt").write_text("x")
    with pytest.raises(RunFolderError, match="no run in"):
        render_report(folder)


def test_all_plots_share_the_step_axis(page: Page) -> None:
    panels = [
        base64.b64decode(found).decode() for found in re.findall(r"data:image/svg\+xml;base64,([^\"]+)", page.html)
    ]
    axes = {tuple(re.findall(r'text-anchor: middle[^>]* x="([\d.]+)"[^>]*>([^<]+)<', svg)) for svg in panels}
    assert len(panels) >= 15
    assert len(axes) == 1, "the same labels at the same places"
    assert [label for _, label in axes.pop()][-1] == "60"
