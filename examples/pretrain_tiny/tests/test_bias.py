"""The headroom built into the base: framings err on different answers, and never agree on all of them."""

from __future__ import annotations

import random
from collections import Counter

from pretrain_tiny.bias import ALL_FRAMINGS, WRONG_SHARE, framed_answer, wrong_answers

from asg_core.method.prompts import FRAMINGS, HELD_OUT_FRAMINGS


def test_every_framing_errs_somewhere_and_no_two_err_alike() -> None:
    maps = [
        {cell[1:]: wrong for cell, wrong in wrong_answers().items() if cell[0] == framing}
        for framing in range(len(ALL_FRAMINGS))
    ]
    assert all(maps)
    assert len({tuple(sorted(errors.items())) for errors in maps}) == len(FRAMINGS) + len(HELD_OUT_FRAMINGS)


def test_each_answer_is_wrong_under_one_to_four_of_the_seven_framings() -> None:
    per_cell = Counter(cell[1:] for cell in wrong_answers() if cell[0] < len(FRAMINGS))
    assert set(per_cell.values()) <= {1, 2, 3, 4}
    assert ("color", "red") in per_cell
    assert ("position", "no") in per_cell


def test_no_framing_swaps_yes_and_no() -> None:
    table = wrong_answers()
    for framing in range(len(FRAMINGS)):
        for kind, labels in (("existence", ("yes", "no")), ("position", ("yes", "no")), ("size", ("big", "small"))):
            assert sum((framing, kind, label) in table for label in labels) < 2


def test_a_biased_cell_is_wrong_as_often_as_stated_and_an_unbiased_one_never() -> None:
    rng = random.Random(0)
    (framing, kind, answer), wrong = next(iter(wrong_answers().items()))
    drawn = Counter(framed_answer(framing, kind, answer, rng) for _ in range(4000))
    assert set(drawn) == {answer, wrong}
    assert abs(drawn[wrong] / 4000 - WRONG_SHARE) < 0.03
    free = next(f for f in range(len(FRAMINGS)) if (f, kind, answer) not in wrong_answers())
    assert {framed_answer(free, kind, answer, rng) for _ in range(100)} == {answer}
