"""Studies: what they run, what they keep, and the arithmetic of their tables."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from asg_core.cli import main
from asg_core.errors import AsgError, ConfigError, RunFolderError
from asg_core.evaluation.compare import ComparisonRow
from asg_core.runs.configuration import load_run_config, write_run_config
from asg_lab.study import StudyResult, Suite, analyse, load_suite, run_study, runner, shipped_suites, write_results
from asg_lab.study.analysis import StudyRow
from asg_lab.study.runner import StudyError, is_finished, run_folder_of

SUITE: dict[str, Any] = {
    "name": "mini",
    "about": "a question",
    "seeds": [0, 1],
    "reference": "full",
    "config": {"backbone": "tiny", "steps": 0, "device": "cpu"},
    "arms": {"full": {"about": "all"}, "no gate": {"about": "no gate", "config": {"solve": {"min_agreement": 0.0}}}},
}


@pytest.fixture
def suite() -> Suite:
    return Suite.model_validate(SUITE)


def finished(out: Path, suite: Suite, arm: str, seed: int, before: list[int], after: list[int]) -> None:
    """A run folder as ``asg train`` leaves it, with the given right and wrong answers."""
    run = run_folder_of(out, arm, seed)
    (run / "evaluation").mkdir(parents=True)
    write_run_config(suite.run_config(arm, seed).model_copy(update={"out": run}), run / "config.yaml")
    for name, scores in (("before", before), ("after", after)):
        rows = [{"section": "s", "category": "all", "key": str(i), "score": x} for i, x in enumerate(scores)]
        (run / "evaluation" / f"{name}.json").write_text(json.dumps(rows))
    versions = {"asg_core": "1", "torch": "2", "transformers": "3", "peft": "4"}
    summary = {"interrupted": False, "evaluation": [], "seconds": 5.0 + seed, **versions}
    (run / "summary.json").write_text(json.dumps(summary))


def test_every_shipped_study_is_valid_in_every_arm():
    assert set(shipped_suites()) == {"gains", "ablations", "signals"}
    for name in shipped_suites():
        shipped = load_suite(name)
        configs = {arm: shipped.run_config(arm, 3) for arm in shipped.arms}
        assert {config.seed for config in configs.values()} == {3}
        assert len({config.model_dump_json() for config in configs.values()}) == len(configs), "two arms are the same"
    assert len(load_suite("gains").seeds) >= 5


def test_an_arm_changes_the_common_settings_and_no_others(suite: Suite):
    full, changed = suite.run_config("full", 1), suite.run_config("no gate", 1)
    assert full.steps == changed.steps == 0
    assert changed.solve.min_agreement == 0.0
    assert changed.model_copy(update={"solve": full.solve}) == full


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"reference": "ful"}, "full"),
        ({"seeds": [1, 1]}, "twice"),
        ({"seeds": []}, "seeds"),
        ({"arms": {"full": {"about": "x", "config": {"stepz": 1}}}}, "stepz"),
        ({"armz": {}}, "arms"),
    ],
)
def test_a_wrong_suite_is_refused_before_anything_runs(change: dict[str, Any], named: str, tmp_path: Path):
    file = tmp_path / "suite.yaml"
    file.write_text(json.dumps({**SUITE, **change}))
    with pytest.raises(ConfigError) as caught:
        load_suite(str(file))
    assert named in str(caught.value)


def test_an_unknown_study_suggests_the_nearest():
    with pytest.raises(ConfigError, match="gain") as caught:
        load_suite("gain")
    assert "'gains'" in caught.value.fix


def test_tables_hold_each_arm_against_its_beginning_and_against_the_reference(suite: Suite, tmp_path: Path):
    finished(tmp_path, suite, "full", 0, [0, 0, 1, 1], [1, 1, 1, 1])
    finished(tmp_path, suite, "full", 1, [0, 0, 0, 1], [0, 0, 0, 1])
    finished(tmp_path, suite, "no gate", 0, [0, 0, 1, 1], [0, 1, 1, 1])
    result = analyse(suite, tmp_path)
    rows = {(r.arm, r.against): r for r in result.rows}
    assert rows["full", "before"].row.difference == pytest.approx((2 + 0) / 8)
    assert rows["full", "before"].by_seed == (0.5, 0.0)
    # Against the reference only the seeds that both have are paired.
    contrast = rows["no gate", "full"]
    assert (contrast.seeds, contrast.row.n) == (1, 4)
    assert (contrast.row.before, contrast.row.after) == (1.0, 0.75)
    assert result.missing == ("no-gate-1",)
    assert result.seconds == {"full-0": 5.0, "full-1": 6.0, "no-gate-0": 5.0}


def test_items_of_two_seeds_are_never_paired_with_each_other(suite: Suite, tmp_path: Path):
    finished(tmp_path, suite, "full", 0, [0, 1], [1, 1])
    finished(tmp_path, suite, "full", 1, [1, 0], [1, 0])
    (row,) = (r.row for r in analyse(suite, tmp_path).rows)
    assert (row.n, row.difference) == (4, 0.25)


def test_the_page_and_the_raw_rows_name_what_is_missing(suite: Suite, tmp_path: Path):
    finished(tmp_path, suite, "full", 0, [0, 1], [1, 1])
    page = write_results(analyse(suite, tmp_path), tmp_path).read_text(encoding="utf-8")
    assert "3 runs are missing" in page
    assert "no-gate-1" in page
    raw = json.loads((tmp_path / "results.json").read_text())
    assert raw["missing"] == ["full-1", "no-gate-0", "no-gate-1"]
    assert raw["rows"][0]["difference"] == 0.5


def test_every_row_stands_on_the_page_under_its_section_and_category(suite: Suite, tmp_path: Path):
    places = [
        (against, section, category, arm)
        for against in ("before", "full")
        for section in ("answers", "drawing")
        for category in ("all", "colour", "count")
        for arm in ("full", "no gate")
    ]
    rows = [
        StudyRow(arm, against, 2, ComparisonRow(section, category, 9, 0.2, 0.3, i / 1000, -0.1, 0.1, 1.0), (0.1, 0.2))
        for i, (against, section, category, arm) in enumerate(places, start=1)
    ]
    page = write_results(StudyResult(suite, tuple(rows), {}, (), {}), tmp_path).read_text(encoding="utf-8")
    found, against, section, group = {}, "", "all", ""
    for line in page.splitlines():
        text = re.sub(r"<[^>]+>", "", line).removeprefix("By category: ")
        if line.startswith("<h2>"):
            against, section = ("before" if text == "After against before" else "full"), "all"
        elif line.startswith("<summary>"):
            section = text
        elif line.startswith("<tbody><tr><th colspan"):
            group = text
        elif line.startswith("<tr><th>") and "<td>" in line:
            arm, _, _, _, _, difference, *_ = line.removeprefix("<tr><th>").split("<td>")
            place = (group, "all") if section == "all" else (section, group)
            found[against, *place, arm] = difference
    assert found == {place: f"{i / 10:+.1f}" for i, place in enumerate(places, start=1)}


def test_without_its_runs_a_study_is_written_again_from_its_rows(suite: Suite, tmp_path: Path):
    for arm in suite.arms:
        for seed in suite.seeds:
            finished(tmp_path, suite, arm, seed, [0, 1, 0, 1], [1, 1, seed, 1])
    suite_file = tmp_path / "mini.yaml"
    suite_file.write_text(json.dumps(SUITE))
    command = ["study", str(suite_file), "--no-run", "--out", str(tmp_path)]
    names = ("results.json", "table.md", "study.html")
    assert main(command) == 0
    written = [(tmp_path / name).read_bytes() for name in names]
    shutil.rmtree(tmp_path / "runs")
    (tmp_path / "runs" / "full-0").mkdir(parents=True)  # one that was begun anew and has not ended
    (tmp_path / "study.html").unlink()
    assert main(command) == 0
    assert [(tmp_path / name).read_bytes() for name in names] == written
    # Rows of other runs are not written over, nor are rows that cannot be read.
    for narrower in (["--seeds", "0"], ["--arms", "full"]):
        assert main([*command, *narrower]) == RunFolderError.exit_code
    assert [(tmp_path / name).read_bytes() for name in names] == written
    (tmp_path / "results.json").write_bytes(written[0][:200])
    assert main(command) == RunFolderError.exit_code
    assert (tmp_path / "results.json").read_bytes() == written[0][:200]


def test_a_folder_with_other_settings_is_refused(suite: Suite, tmp_path: Path):
    finished(tmp_path, suite, "full", 0, [0], [1])
    other = Suite.model_validate({**SUITE, "config": {**SUITE["config"], "images_per_step": 2}})
    with pytest.raises(RunFolderError, match="full-0") as caught:
        run_study(other, tmp_path, 1, print)
    assert "images_per_step" in caught.value.why


FEW_ITEMS = """
import sys
from asg_core.runs.report import render
from asg_core.tiny import evaluation
render.draw_panels = lambda *_: []
evaluation.QUESTIONS, evaluation.DRAWINGS, evaluation.VALIDATION = 14, 6, 6
from asg_core.cli import main
sys.exit(main(sys.argv[1:]))
"""
"""``asg`` with an evaluation of seconds instead of half a minute."""


def test_a_failed_run_is_named_and_the_others_are_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    command = runner._command
    monkeypatch.setattr(runner, "_command", lambda *a: [sys.executable, "-c", FEW_ITEMS, *command(*a)[3:]])
    arms = {
        "full": {"about": "runs"},
        "lost": {"about": "cannot run", "config": {"images": str(tmp_path / "nowhere")}},
    }
    suite = Suite.model_validate({**SUITE, "seeds": [0], "arms": arms})
    said: list[str] = []
    with pytest.raises(StudyError) as caught:
        run_study(suite, tmp_path / "out", 2, said.append)
    assert "lost, seed 0 (exit code 3" in caught.value.why
    assert is_finished(run_folder_of(tmp_path / "out", "full", 0))
    stored = load_run_config(run_folder_of(tmp_path / "out", "full", 0) / "config.yaml")
    assert stored.model_copy(update={"out": None}) == suite.run_config("full", 0)
    # No update: the evaluation after is the evaluation before, item by item.
    (row,) = {r.row.difference for r in analyse(suite, tmp_path / "out").rows}
    assert row == 0.0
    before = (run_folder_of(tmp_path / "out", "full", 0) / "summary.json").stat().st_mtime_ns
    with pytest.raises(AsgError):
        run_study(suite, tmp_path / "out", 1, said.append)
    assert (run_folder_of(tmp_path / "out", "full", 0) / "summary.json").stat().st_mtime_ns == before


def test_the_command_lists_studies_and_refuses_unknown_arms(capsys: pytest.CaptureFixture[str]):
    assert main(["study"]) == 0
    assert "gains" in capsys.readouterr().out
    assert main(["study", "gains", "--arms", "fulll", "--no-run"]) == 2
    assert "'full'" in capsys.readouterr().err


def test_tables_of_a_study_that_was_never_run_say_so(tmp_path: Path):
    out = tmp_path / "new" / "folder"
    assert main(["study", "gains", "--seeds", "0", "--no-run", "--out", str(out)]) == 0
    assert "3 runs are missing" in (out / "study.html").read_text(encoding="utf-8")
