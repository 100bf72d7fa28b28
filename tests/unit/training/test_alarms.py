from __future__ import annotations

from typing import Any

import pytest

from asg_core.config.schema import Alarms
from asg_core.training.alarms import CollapseMonitor

HEALTHY: dict[str, Any] = {
    "kind": "understanding",
    "questions": 12,
    "gate_failures": 1,
    "distinct_question_share": 0.8,
    "constant_answer_share": 0.3,
    "non_answer_share": 0.1,
    "kl_proposer": 0.02,
    "kl_solver": 0.03,
    "ste_raw": 0.5,
    "zero_variance_share": 0.2,
}


def rings(steps: int, **changes: Any) -> list[str]:
    monitor = CollapseMonitor(Alarms(window=4))
    alarms: list[str] = []
    for _ in range(steps):
        alarms = monitor.observe({**HEALTHY, **changes})
    return alarms


def test_a_healthy_run_rings_nothing() -> None:
    assert rings(20) == []


@pytest.mark.parametrize(
    ("change", "alarm"),
    [
        ({"gate_failures": 12}, "no-questions"),
        ({"distinct_question_share": 0.05}, "repeated-questions"),
        ({"questions": 3, "gate_failures": 0, "distinct_question_share": 1 / 3}, "repeated-questions"),
        ({"constant_answer_share": 1.0}, "constant-answers"),
        ({"non_answer_share": 1.0}, "no-answers"),
        ({"kl_solver": 2.0}, "kl-drift"),
        ({"kl_proposer": 2.0, "kl_solver": None}, "kl-drift"),
        ({"ste_raw": 0.0}, "entropy-floor"),
        ({"zero_variance_share": 1.0}, "no-signal-understanding"),
    ],
)
def test_each_collapse_rings_its_alarm_once_the_window_is_full(change: dict[str, Any], alarm: str) -> None:
    assert rings(3, **change) == []
    assert rings(4, **change) == [alarm]


def test_generation_steps_have_their_own_signal_alarm() -> None:
    monitor = CollapseMonitor(Alarms(window=2))
    step = {"kind": "generation", "zero_variance_share": 1.0}
    assert monitor.observe(step) == []
    assert monitor.observe(step) == ["no-signal-generation"]


def test_one_odd_step_and_missing_values_ring_nothing() -> None:
    monitor = CollapseMonitor(Alarms(window=4))
    missing = dict.fromkeys(HEALTHY, None) | {"kind": "understanding", "questions": 0, "gate_failures": 0}
    for step in [HEALTHY, HEALTHY, {**HEALTHY, "constant_answer_share": 1.0}, missing, HEALTHY]:
        assert monitor.observe(step) == []


def test_a_restored_monitor_rings_when_the_original_would() -> None:
    monitor = CollapseMonitor(Alarms(window=4))
    for _ in range(3):
        monitor.observe({**HEALTHY, "ste_raw": 0.0})
    other = CollapseMonitor(Alarms(window=4))
    other.restore(monitor.state())
    assert other.observe({**HEALTHY, "ste_raw": 0.0}) == ["entropy-floor"]
