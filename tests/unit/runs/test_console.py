"""What a person sees while training runs: plain lines in logs, a live table on terminals, a usable terminal after."""

from __future__ import annotations

import io
import math
import re
import unicodedata
from typing import Any

import pytest

from asg_core.runs.console import TrainingDisplay

UNDERSTANDING: dict[str, Any] = {
    "step": 3,
    "kind": "understanding",
    "seconds": 1.25,
    "reward_proposer": 0.4123,
    "reward_solver": -0.0806,
    "h_sc": 0.9557,
    "ste_raw": 1.2345,
    "kl_proposer": 0.0123,
    "kl_solver": 0.0456,
    "alarms": [],
}
GENERATION: dict[str, Any] = {
    "step": 4,
    "kind": "generation",
    "seconds": 0.75,
    "reward_generator": 0.5811,
    "s_fid": 0.6667,
    "kl_generator": None,
    "alarms": ["max_kl"],
}
HIDE, SHOW = "\x1b[?25l", "\x1b[?25h"


def lines(total_steps: int, *records: dict[str, Any]) -> list[str]:
    stream = io.StringIO()
    with TrainingDisplay(total_steps, stream=stream, interactive=False) as display:
        for record in records:
            display.step(record)
    return stream.getvalue().splitlines()


def test_one_line_per_step_with_its_rewards() -> None:
    first, second = lines(125, UNDERSTANDING, GENERATION)
    for part in ("3/125", "understanding", "proposer +0.412", "solver -0.081", "H_sc 0.956", "STE 1.234", "0.046"):
        assert part in first
    for part in ("4/125", "generation", "generator +0.581", "S_fid 0.667"):
        assert part in second
    assert "proposer" not in second, "a line holds its own step's values only"


def test_a_step_with_nothing_to_learn_from_says_so() -> None:
    asked = UNDERSTANDING | {"questions": 6, "gate_failures": 5}
    drawn = GENERATION | {"specs": 1, "skipped": 1}
    usual, none, some, undrawn = lines(9, asked, asked | {"gate_failures": 6}, drawn, drawn | {"specs": 0})
    assert "no completion is a question" in none
    assert "no image got a usable spec" in undrawn
    assert not any("no completion" in line or "no image" in line for line in (usual, some))


def test_time_left_is_the_mean_of_recent_steps_times_what_is_left() -> None:
    shown = lines(100, *({"step": s, "seconds": 100.0 if s < 30 else 2.0} for s in range(1, 61)))
    assert shown[0].endswith("left 2:45:00"), "99 steps of 100 s"
    assert shown[-1].endswith("left 0:01:20"), "40 steps of 2 s; the slow start is forgotten"


@pytest.mark.parametrize("interactive", [False, True])
@pytest.mark.parametrize(
    "record",
    [
        {},
        dict.fromkeys(UNDERSTANDING | GENERATION),
        {"step": 7, "reward_solver": math.nan, "kl_solver": math.inf, "seconds": -math.inf},
        {"step": "seven", "kind": 3, "reward_proposer": "high", "h_sc": [1], "seconds": {}},
        {"step": 10**9, "reward_generator": -1e300},
    ],
)
def test_odd_values_never_raise(record: dict[str, Any], interactive: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    stream = io.StringIO()
    with TrainingDisplay(0, stream=stream, interactive=interactive) as display:
        display.step(record)
        display.step(GENERATION)
        with display.task("evaluating") as progress:
            progress(0, 0)
            progress(3, 2)
    assert re.search(r"\b(nan|inf|None)\b", stream.getvalue()) is None
    assert "+0.581" in stream.getvalue()


def test_plain_lines_hold_no_control_characters() -> None:
    stream = io.StringIO()
    with TrainingDisplay(2, stream=stream, interactive=False) as display:
        display.message("quarantined \x1b[2J\x07bad\rname\u202e\t.png: [bold]why[/]\nsecond line")
        with display.task("evaluating \x1b[31m") as progress:
            progress(1, 1)
        display.step(UNDERSTANDING | {"kind": "\x1b[1mx"})
    text = stream.getvalue()
    assert {c for c in text if unicodedata.category(c) in {"Cc", "Cf"}} == {"\n"}
    assert "[bold]why[/]\nsecond line\n" in text, "brackets are text, line breaks stay"


def test_a_stream_that_cannot_encode_is_no_reason_to_stop() -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii")
    with TrainingDisplay(1, stream=stream, interactive=False) as display:
        display.message("größer \ud800")
    assert raw.getvalue() == b"gr\\xf6\\xdfer ?\n"


def test_tasks_report_quarters_not_every_item() -> None:
    stream = io.StringIO()
    with TrainingDisplay(1, stream=stream, interactive=False).task("evaluating before") as progress:
        for done in range(1001):
            progress(done, 1000)
    shown = stream.getvalue().splitlines()
    assert shown == ["evaluating before", *(f"evaluating before: {q} %" for q in (25, 50, 75, 100))]


def test_a_stream_that_is_no_terminal_gets_lines() -> None:
    stream = io.StringIO()
    with TrainingDisplay(1, stream=stream) as display:
        display.step(UNDERSTANDING)
    assert stream.getvalue().count("\n") == 1
    assert "\x1b" not in stream.getvalue()


@pytest.mark.parametrize("error", [None, RuntimeError, KeyboardInterrupt])
def test_terminal_is_restored(error: type[BaseException] | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    stream = io.StringIO()

    def run() -> None:
        with TrainingDisplay(9, stream=stream, interactive=True) as display, display.task("evaluating") as progress:
            progress(1, 4)
            display.step(UNDERSTANDING)
            if error:
                raise error

    if error:
        with pytest.raises(error):
            run()
    else:
        run()
    assert HIDE in stream.getvalue()
    assert stream.getvalue().rindex(SHOW) > stream.getvalue().rindex(HIDE)


def test_live_table_keeps_the_last_value_of_every_role(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    stream = io.StringIO()
    with TrainingDisplay(9, stream=stream, interactive=True) as display:
        display.step(UNDERSTANDING)
        display.step(GENERATION)
        display.message("saved [red]x[/] \x1b[2J")
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", stream.getvalue())
    last = text[text.rindex("grad norm") :]
    for part in ("+0.412", "-0.081", "+0.581", "H_sc 0.956", "S_fid 0.667", "step 4/9"):
        assert part in last
    assert "saved [red]x[/] ?[2J" in text
