from __future__ import annotations

from asg_core.config.schema import Schedule
from asg_core.training.schedule import kinds, step_kind


def letters(steps: int, **schedule: object) -> str:
    return "".join(step_kind(n, steps, Schedule.model_validate(schedule))[0] for n in range(1, steps + 1))


def test_three_to_two_by_default() -> None:
    assert letters(12) == "uuugguuugguu"


def test_one_kind_only() -> None:
    assert letters(4, mode="understanding") == "uuuu"
    assert letters(4, mode="generation") == "gggg"


def test_two_stage_spends_the_same_shares_as_blocks() -> None:
    assert letters(10, mode="two_stage") == "uuuuuugggg"
    assert letters(9, mode="two_stage", ratio=(1, 2)) == "uuugggggg"


def test_kinds_of_a_short_run() -> None:
    assert kinds(3, Schedule()) == {"understanding"}
    assert kinds(4, Schedule()) == {"understanding", "generation"}
    assert kinds(0, Schedule()) == set()
