"""The parity runner can fail: every way in which a replay can be wrong or incomplete is seen."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from asg_core.errors import ConfigError
from asg_core.testing import ParityReport, ParityRun, run_parity


@pytest.fixture
def fixture(tmp_path: Path) -> Path:
    save_file({"a/x": torch.tensor([1.0, 2.0]), "b/ids": torch.tensor([3, 4])}, tmp_path / "cases.safetensors")
    (tmp_path / "manifest.json").write_text(json.dumps({"a": {"tolerance": 1e-3}, "b": {}, "meta": {}}))
    return tmp_path


def replay(run: ParityRun, shift: float = 0.0) -> ParityReport:
    tolerance = run.value("a")["tolerance"]
    run.close("a", torch.tensor([1.0, 2.0 + shift]), run.tensor("a/x"), tolerance)
    run.value("b")
    run.equal("b", torch.tensor([3, 4]), run.tensor("b/ids"))
    return run.finish(informational=["meta"])


def test_a_complete_and_right_replay_passes(fixture: Path) -> None:
    report = run_parity(replay, fixture)
    assert report.passed
    assert [c.name for c in report.cases] == ["a", "b"]


@pytest.mark.parametrize("shift", [2e-3, float("nan"), float("inf")])
def test_a_number_out_of_tolerance_fails(shift: float, fixture: Path) -> None:
    assert not run_parity(lambda run: replay(run, shift), fixture).passed


def test_unread_tensors_and_cases_fail(fixture: Path) -> None:
    def lazy(run: ParityRun) -> ParityReport:
        run.close("a", 1.0, 1.0, 0.0)
        return run.finish(informational=["meta"])

    failed = [c.name for c in run_parity(lazy, fixture).cases if not c.passed]
    assert failed == ["unknown tensor a/x", "unknown tensor b/ids", "unknown case a", "unknown case b"]


def test_shape_and_exact_mismatches_fail_and_say_what_they_got(fixture: Path) -> None:
    run = ParityRun(fixture)
    run.close("shape", torch.zeros(1, 2), torch.zeros(2), 1.0)
    run.equal("ids", torch.tensor([3, 5]), torch.tensor([3, 4]))
    run.equal("text", "b", "a")
    assert [c.passed for c in run.report.cases] == [False, False, False]
    assert "(1, 2), expected (2,)" in run.report.cases[0].note
    assert run.report.cases[2].note == "got b, expected a"


def test_a_case_that_raises_is_a_failure_and_the_next_one_still_runs(fixture: Path) -> None:
    run = ParityRun(fixture)
    with run.case("broken"):
        run.tensor("no such tensor")
    run.close("fine", 1.0, 1.0, 0.0)
    assert [(c.name, c.passed) for c in run.report.cases] == [("broken", False), ("fine", True)]


def test_no_case_at_all_is_no_success(fixture: Path) -> None:
    assert not ParityReport().passed


def test_a_folder_that_is_no_fixture_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not a parity fixture"):
        ParityRun(tmp_path)
