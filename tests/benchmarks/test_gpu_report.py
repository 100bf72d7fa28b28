"""The GPU benchmark reports every section: done, failed with the reason, or not run for lack of time."""

from __future__ import annotations

import json
from pathlib import Path

import gpu
import pytest
import torch
from gpu_report import Deadline, Row, Section, check, header, markdown, run_sections, timed, write_json

CPU = torch.device("cpu")


def test_a_failing_section_takes_no_other_with_it() -> None:
    def broken() -> list[Row]:
        raise ValueError("wrong\nshape")

    def exhausted() -> list[Row]:
        raise torch.OutOfMemoryError("tried to allocate 9 GiB")

    fine = [Row("c", "n", 1.0, "s"), Row("c", "m", 2.0, "s")]
    rows = run_sections([Section("a", broken), Section("b", exhausted), Section("c", lambda: fine)], Deadline(60), CPU)
    assert [(row.section, row.status) for row in rows] == [("a", "failed"), ("b", "failed"), ("c", "ok"), ("c", "ok")]
    assert rows[0].note == "ValueError: wrong shape"
    assert rows[1].note == "out of memory: tried to allocate 9 GiB"
    assert [row.value for row in rows[2:]] == [1.0, 2.0]
    assert {row.peak_gib for row in rows} == {None}


def test_what_the_time_does_not_suffice_for_is_listed_and_not_started() -> None:
    started: list[str] = []

    def section(name: str, expected: float) -> Section:
        def run() -> list[Row]:
            started.append(name)
            return [Row(name)]

        return Section(name, run, lambda: expected)

    rows = run_sections([section("long", 100), section("short", 5), section("unknown", 0)], Deadline(60), CPU)
    assert started == ["short", "unknown"]
    assert [row.status for row in rows] == ["not run", "ok", "ok"]
    assert rows[0].note == "out of time: 60 s left, needs 100 s"
    late = run_sections([section("any", 0)], Deadline(-1), CPU)
    assert (late[0].status, late[0].note) == ("not run", "out of time: 0 s left")


@pytest.mark.parametrize(
    ("value", "status"),
    [(0.1, "ok"), (0.2, "ok"), (0.21, "failed"), (float("nan"), "failed"), (float("inf"), "failed")],
)
def test_a_check_fails_above_its_limit_and_on_no_number(value: float, status: str) -> None:
    assert check("precision", "logits", value, 0.2, "relative").status == status


def test_gap_is_the_factor_to_the_bound() -> None:
    assert Row("decode", "one", 6.0, "ms", bound=3.0).gap == 2.0
    assert Row("decode", "one", 6.0, "ms").gap is None
    assert Row("decode", "one", bound=3.0).gap is None


def test_table_and_file_hold_every_row(tmp_path: Path) -> None:
    rows = [
        Row("decode", "a|b", 6.0, "ms", bound=3.0, peak_gib=1.5),
        check("precision", "logits", float("nan"), 0.2, "relative"),
        Row("image", status="not run", note="out of time: 1 s left"),
    ]
    table = markdown({"some": rows}).splitlines()
    assert len(table) == 2 + len(rows)
    assert {line.count("|") for line in table} == {10}
    assert "FAILED nan" in table[3]
    assert "not run" in table[4]
    write_json(tmp_path / "out.json", header(CPU, "tiny", "float32", 1.0), {"some": rows})
    data = json.loads((tmp_path / "out.json").read_text())
    assert (data["device"], data["scale"]) == ("cpu", "tiny")
    assert data["versions"]["torch"] == torch.__version__
    found = data["backbones"]["some"]
    assert [row["status"] for row in found] == ["ok", "failed", "not run"]
    assert (found[0]["gap"], found[1]["value"]) == (2.0, None)


def test_a_missing_plugin_is_listed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(gpu, "installed", lambda name: False)
    assert gpu.main(["bagel", "--device", "cpu", "--tiny"]) == 0
    assert "| bagel | build |  | not run |" in capsys.readouterr().out


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
