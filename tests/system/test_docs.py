"""The docs stay true."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from runpy import run_path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


def test_paper_map_names_the_right_file_and_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["refresh.py", "--check"])
    with pytest.raises(SystemExit) as done:
        run_path(str(ROOT / "docs" / "refresh.py"), run_name="__main__")
    assert done.value.code == 0, "stale: run python docs/refresh.py"


def test_every_metric_key_is_documented() -> None:
    from asg_core.training.metrics import generation_metrics, understanding_metrics

    page = (ROOT / "docs" / "run_folder.md").read_text(encoding="utf-8")
    assert [key for key in {**understanding_metrics([]), **generation_metrics([])} if f"`{key}`" not in page] == []


def test_every_alarm_is_documented() -> None:
    import inspect
    import re

    from asg_core.training import alarms

    names = re.findall(r'"([a-z-]+)": \(', inspect.getsource(alarms))
    page = (ROOT / "docs" / "alarms.md").read_text(encoding="utf-8")
    assert len(names) == 6
    assert [name for name in names if f"`{name}`" not in page] == []


def gains_results() -> dict[str, Any]:
    def row(arm: str, category: str, difference: float, low: float) -> dict[str, Any]:
        values = {"before": 0.5, "after": 0.5 + difference, "ci_low": low, "ci_high": 2 * difference - low}
        shared = {"section": "answers", "against": "before", "by_seed": [difference - 0.01, difference + 0.02]}
        return {"arm": arm, "category": category, "difference": difference, **values, **shared}

    rows = [row("full", "all", 0.1, 0.05), row("full", "count", 0.01, -0.02), row("noise", "all", 0.0, -0.01)]
    rows.append(row("full", "colour", -0.1, -0.15))
    suite = {"reference": "full", "seeds": [0, 1], "arms": {"full": {}, "noise": {}, "not run": {}}}
    return {
        "suite": suite,
        "rows": [*rows, {**rows[2], "against": "full", "difference": -0.1}],
        "seconds": {"full-0": 60.4, "full-1": 71.0, "noise-0": 0.0},
        "versions": {"torch": ["2.13.0"]},
        "missing": ["not-run-0"],
    }


def test_the_readme_says_what_a_study_found_and_what_it_does_not_improve() -> None:
    lines = run_path(str(ROOT / "docs" / "refresh.py"))["gains"](gains_results())
    assert "| answers | 50.0 | 60.0 | +10.0 (+5.0 to +15.0) | +9.0 to +12.0 |" in lines
    assert "| noise | +0.0 (-1.0 to +1.0) |" in lines
    worse, unclear = lines.index("Made worse by full:"), next(i for i, x in enumerate(lines) if "reaches 0" in x)
    assert lines[worse + 2] == "* answers: colour -10.0 (-15.0 to -5.0)"
    assert lines[unclear + 2] == "* answers: count +1.0 (-2.0 to +4.0)"
    assert "Seeds 0, 1; the steps of a run took 60 to 71 s; torch 2.13.0." in lines
    assert lines[-1] == "Runs that are missing: not-run-0."
    assert not any("not run |" in line for line in lines)


def test_the_readme_names_changes_that_matter_and_those_that_do_not() -> None:
    def row(arm: str, section: str, difference: float, against: str = "full", seeds: int = 2) -> dict[str, Any]:
        ends = {"ci_low": difference - 0.02, "ci_high": difference + 0.02, "difference": difference}
        return {"arm": arm, "against": against, "section": section, "category": "all", "seeds": seeds, **ends}

    rows = [row("gone", "answers", -0.1), row("gone", "drawing", 0.01), row("idle", "answers", 0.01)]
    rows += [row("idle", "drawing", -0.02, seeds=1), row("gone", "answers", 0.5, against="before")]
    results = {"suite": {"reference": "full"}, "rows": rows, "missing": ["idle-1"]}
    assert run_path(str(ROOT / "docs" / "refresh.py"))["ablations"](results) == [
        "| change | answers | drawing |",
        "|---|---|---|",
        "| gone | **-10.0 (-12.0 to -8.0)** | +1.0 (-1.0 to +3.0) |",
        "",
        "No difference seen (every interval reaches 0): idle. Seeds per change: 1 to 2.",
        "Runs that are missing: idle-1.",
    ]


def test_only_blocks_whose_results_are_there_are_written_and_nothing_around_them(tmp_path: Path) -> None:
    refresh = run_path(str(ROOT / "docs" / "refresh.py"))
    with_studies = refresh["with_studies"]
    with_studies.__globals__["ROOT"] = tmp_path
    page = "top\n<!-- study: gains -->\nold\n<!-- end -->\nmiddle\n<!-- study: signals -->\nkept\n<!-- end -->\nlast\n"
    assert with_studies(page) == page
    (tmp_path / "benchmarks" / "gains").mkdir(parents=True)
    (tmp_path / "benchmarks" / "gains" / "results.json").write_text(json.dumps(gains_results()))
    written = with_studies(page)
    before, after = page.split("old")
    assert written.startswith(before)
    assert written.endswith(after)
    assert "+10.0 (+5.0 to +15.0)" in written
    assert "old" not in written
    assert with_studies(written) == written
    with pytest.raises(ValueError, match="substring not found"):
        with_studies("a page without blocks")
