"""The GPU benchmark reports every section: done, failed with the reason, or not run for lack of time."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest
import torch

import gpu
import gpu_report
from gpu_report import PACKAGES, header, markdown, write_json
from gpu_rounds import rounds
from gpu_rows import Deadline, Row, Section, against, check, run_section, run_sections, timed

CPU = torch.device("cpu")


def test_a_failing_section_takes_no_other_with_it() -> None:
    def broken() -> Iterator[Row]:
        raise ValueError("wrong\nshape")

    def exhausted() -> Iterator[Row]:
        raise torch.OutOfMemoryError("tried to allocate 9 GiB")

    def fine() -> Iterator[Row]:
        yield Row("c", "n", 1.0, "s")
        yield Row("c", "m", 2.0, "s")

    rows: list[Row] = []
    run_sections([Section("a", broken), Section("b", exhausted), Section("c", fine)], Deadline(60), CPU, rows.append)
    assert [(row.section, row.status) for row in rows] == [("a", "failed"), ("b", "failed"), ("c", "ok"), ("c", "ok")]
    assert rows[0].note == "ValueError: wrong shape"
    assert rows[1].note == "out of memory: tried to allocate 9 GiB"
    assert [row.value for row in rows[2:]] == [1.0, 2.0]
    assert {row.peak_gib for row in rows} == {None}


def test_rows_before_a_failure_are_kept_as_they_come() -> None:
    rows: list[Row] = []

    def half() -> Iterator[Row]:
        yield Row("a", "first", 1.0, "s")
        assert [row.name for row in rows] == ["first"], "the row must be safe before the next is measured"
        raise ValueError("later")

    run_section(Section("a", half), Deadline(60), CPU, rows.append)
    assert [(row.name, row.status) for row in rows] == [("first", "ok"), ("", "failed")]


def test_what_the_time_does_not_suffice_for_is_listed_and_not_started() -> None:
    started: list[str] = []

    def section(name: str, expected: float) -> Section:
        def run() -> Iterator[Row]:
            started.append(name)
            yield Row(name)

        return Section(name, run, lambda: expected)

    rows: list[Row] = []
    run_sections([section("long", 100), section("short", 5), section("unknown", 0)], Deadline(60), CPU, rows.append)
    assert started == ["short", "unknown"]
    assert [row.status for row in rows] == ["not run", "ok", "ok"]
    assert rows[0].note == "out of time: 60 s left, needs 100 s"
    run_section(section("any", 0), Deadline(-1), CPU, rows.append)
    assert (rows[-1].status, rows[-1].note) == ("not run", "out of time: 0 s left")


def test_the_time_is_looked_at_inside_a_section() -> None:
    rows: list[Row] = []

    def slow() -> Iterator[Row]:
        for batch in range(3):
            time.sleep(0.2)
            yield Row("decode", f"batch {batch}", 1.0, "ms")

    run_section(Section("decode", slow), Deadline(0.3), CPU, rows.append)
    assert [row.status for row in rows] == ["ok", "ok", "not run"]


def test_every_section_of_every_round_exists_once() -> None:
    names = [name for names in rounds(8) for name in names]
    assert len(set(names)) == len(names)
    assert not any("," in name for name in names), "--only separates them by commas"


@pytest.mark.parametrize(
    ("value", "status"),
    [(0.1, "ok"), (0.2, "ok"), (0.21, "failed"), (float("nan"), "failed"), (float("inf"), "failed")],
)
def test_a_check_fails_above_its_limit_and_on_no_number(value: float, status: str) -> None:
    assert check("precision", "logits", value, 0.2, "relative").status == status


@pytest.mark.parametrize(
    ("unit", "value", "status"), [("s", 11.9, "ok"), ("s", 12.1, "missed"), ("x", 12.1, "ok"), ("x", 11.9, "missed")]
)
def test_a_bar_is_a_most_of_seconds_and_a_least_of_ratios(unit: str, value: float, status: str) -> None:
    row = against(Row("step", "one", value, unit), 12.0)
    assert (row.status, row.limit) == (status, 12.0)
    assert against(Row("step", "one", value, unit), None).status == "ok"


def test_share_of_the_roofline() -> None:
    assert Row("decode", "one", 6.0, "ms", bound=3.0).roofline_share == 0.5
    assert Row("decode", "one", 6.0, "ms").roofline_share is None
    assert Row("decode", "one", bound=3.0).roofline_share is None


def test_a_header_needs_no_installed_packages_and_warns_of_an_old_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(package: str) -> str:
        if package.startswith("asg"):
            raise PackageNotFoundError(package)
        return "5.22.1"

    monkeypatch.setattr(gpu_report, "version", version)
    head = header(CPU, "tiny", "float32", 1.0)
    assert head["versions"] == dict.fromkeys(PACKAGES[1:], "5.22.1")
    assert "copies keys and values" in str(head["warning"])
    monkeypatch.setattr(gpu_report, "version", lambda package: "5.23.0")
    assert "warning" not in header(CPU, "tiny", "float32", 1.0)


def test_table_and_file_hold_every_row(tmp_path: Path) -> None:
    rows = [
        Row("decode", "a|b", 6.0, "ms", bound=3.0, peak_gib=1.5),
        check("precision", "logits", float("nan"), 0.2, "relative"),
        Row("image", status="not run", note="out of time: 1 s left"),
    ]
    table = markdown({"some": rows}).splitlines()
    assert len(table) == 2 + len(rows)
    assert {line.count("|") for line in table} == {11}
    assert "FAILED nan" in table[3]
    assert "not run" in table[4]
    write_json(tmp_path / "out.json", header(CPU, "tiny", "float32", 1.0), {"some": rows})
    data = json.loads((tmp_path / "out.json").read_text())
    assert (data["device"], data["scale"]) == ("cpu", "tiny")
    assert data["versions"]["torch"] == torch.__version__
    found = data["backbones"]["some"]
    assert [row["status"] for row in found] == ["ok", "failed", "not run"]
    assert (found[0]["roofline_share"], found[1]["value"]) == (0.5, None)


def test_a_missing_plugin_is_listed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(gpu, "installed", lambda name: False)
    assert gpu.main(["bagel", "--device", "cpu", "--tiny"]) == 0
    assert "| bagel | build |  | not run |" in capsys.readouterr().out


def test_an_unknown_section_is_answered_with_those_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main(["all", "--device", "cpu", "--tiny", "--only", "decode,decod"]) == 2
    assert "no section 'decod'; sections are precision, replay, prefill" in capsys.readouterr().err


def test_full_size_is_refused_without_a_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main(["all", "--device", "cpu"]) == 2
    assert "need a CUDA device" in capsys.readouterr().err


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_clock_waits_for_the_device() -> None:
    device = torch.device("cuda")
    a = torch.randn(8192, 8192, device=device, dtype=torch.bfloat16)
    products = 20
    timed(device, lambda: a @ a)
    value = timed(device, lambda: [a @ a for _ in range(products)])
    assert value > products * 2 * 8192**3 / 2.5e15  # no device multiplies faster
