"""Reward of the Generator against numbers computed by hand from METHOD."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asg_core.method.answers import same_answer, vote
from asg_core.method.rewards import (
    CandidateScores,
    contradiction,
    fidelity,
    generation_reward,
    reference_label,
    spec_quality,
)
from devkit.sizes import fuzz

UNIT = st.floats(0, 1)


def test_two_of_three_framings_make_a_reference() -> None:
    assert reference_label(vote(["red", "blue", "red"], 0)) == "red"
    assert reference_label(vote(["red", "red", "red"], 0)) == "red"
    assert reference_label(vote(["red", "blue", "green"], 0)) is None
    assert reference_label(vote(["red", "blue"], 0)) is None
    assert reference_label(vote(["red"] * 4 + ["blue"] * 2, 0)) == "red"


@pytest.mark.parametrize("label", ["", "other"])
def test_a_non_answer_is_no_reference(label: str) -> None:
    assert reference_label(vote([label] * 3, 0)) is None


@pytest.mark.parametrize(
    ("kept", "raw_count", "quality"),
    [
        ([("What colour is it?", "red"), ("How many?", "2"), ("Is it big?", "yes")], 3, 0.5 + 0.3 + 0.2),
        ([("What colour is it?", "red"), ("How many?", "2")], 3, 0.5 + 0.3 * 2 / 3 + 0.2),
        ([("What colour is it?", "red")], 3, 0.25 + 0.1 + 0.2),
        ([("Is it big?", "yes"), ("Is it red?", "no")], 2, 0.5 + 0.3 + 0.2 - 0.2),
        ([("Is it big?", "yes")], 1, 0.25 + 0.3 + 0.2),
        ([("What colour is it?", "red"), ("what colour is IT ?", "red")], 2, 0.5 + 0.3 + 0.1),
        ([], 3, 0.0),
        ([], 0, 0.0),
    ],
)
def test_spec_quality_by_hand(kept: list[tuple[str, str]], raw_count: int, quality: float) -> None:
    assert spec_quality(kept, raw_count) == pytest.approx(quality)


def test_more_kept_than_written_is_refused() -> None:
    with pytest.raises(ValueError, match="1 questions kept of 0"):
        spec_quality([("What colour is it?", "red")], 0)


def test_fidelity_is_the_mean_match() -> None:
    assert fidelity([True, False, True]) == pytest.approx(2 / 3)
    assert fidelity([0.9, 0.3]) == pytest.approx(0.6)
    assert math.isnan(fidelity([1.0, math.nan]))
    with pytest.raises(ValueError, match="at least one"):
        fidelity([])


def test_fidelity_knows_numbers_and_no_substrings() -> None:
    pairs = [("How many cats?", "two", "2"), ("How many cats?", "40", "4"), ("What is it?", "cat", "a")]
    assert fidelity([same_answer(seen, wanted, question) for question, seen, wanted in pairs]) == pytest.approx(1 / 3)


def test_contradiction_counts_only_yes_no_questions() -> None:
    answers = [
        ("Is it red?", "no", "yes"),
        ("Is it big?", "yes", "yes"),
        ("What colour is it?", "blue", "red"),
        ("How many are there?", "3", "2"),
    ]
    assert contradiction(answers) == 0.5
    assert contradiction(answers[2:]) == 0.0
    assert contradiction([]) == 0.0


def test_an_undecided_answer_does_not_contradict() -> None:
    assert contradiction([("Is it red?", "other", "yes"), ("Is it big?", "yes", "no")]) == 0.5


def test_north_does_not_contradict_yes() -> None:
    assert contradiction([("Is it there?", "north", "yes")]) == 0.0


PERFECT = CandidateScores(fidelity=1.0, cycle=1.0, diversity=1.0, contradiction=0.0)


def test_generation_reward_by_hand() -> None:
    assert generation_reward(1.0, PERFECT) == pytest.approx(1.0)
    assert generation_reward(0.8, PERFECT) == pytest.approx(0.8)
    scores = CandidateScores(fidelity=2 / 3, cycle=0.7, diversity=0.1, contradiction=0.5)
    raw = (0.65 * 2 / 3 + 0.20 * 0.7 + 0.10 * 0.1) / 0.95 - 0.10
    assert generation_reward(0.9, scores) == pytest.approx(0.9 * raw)


def test_each_score_has_its_weight() -> None:
    middle = CandidateScores(fidelity=0.5, cycle=0.5, diversity=0.5, contradiction=0.5)
    at = generation_reward(1.0, middle)
    assert generation_reward(1.0, replace(middle, fidelity=0.6)) - at == pytest.approx(0.065 / 0.95)
    assert generation_reward(1.0, replace(middle, cycle=0.6)) - at == pytest.approx(0.020 / 0.95)
    assert generation_reward(1.0, replace(middle, diversity=0.6)) - at == pytest.approx(0.010 / 0.95)
    assert generation_reward(1.0, replace(middle, contradiction=0.6)) - at == pytest.approx(-0.020)


def test_a_contradicted_candidate_earns_no_less_than_nothing() -> None:
    assert generation_reward(1.0, CandidateScores(cycle=0.1, contradiction=1.0)) == 0.0


@pytest.mark.parametrize("name", ["fidelity", "cycle", "diversity", "contradiction"])
def test_a_score_that_is_not_a_number_is_not_hidden(name: str) -> None:
    assert math.isnan(generation_reward(1.0, replace(PERFECT, **{name: math.nan})))


@fuzz(100)
@given(UNIT, UNIT, UNIT, UNIT, UNIT)
def test_a_generation_reward_stays_within_the_quality(q: float, f: float, c: float, d: float, x: float) -> None:
    scores = CandidateScores(fidelity=f, cycle=c, diversity=d, contradiction=x)
    assert 0.0 <= generation_reward(q, scores) <= q


@pytest.mark.parametrize(
    ("without", "expected"),
    [
        (None, 0.8 * ((0.65 * 0.5 + 0.20 * 0.4 + 0.10 * 0.3) / 0.95 - 0.20 * 0.25)),
        ("fidelity", 0.8 * ((0.20 * 0.4 + 0.10 * 0.3) / 0.30 - 0.20 * 0.25)),
        ("cycle", 0.8 * ((0.65 * 0.5 + 0.10 * 0.3) / 0.75 - 0.20 * 0.25)),
        ("diversity", 0.8 * ((0.65 * 0.5 + 0.20 * 0.4) / 0.85 - 0.20 * 0.25)),
        ("contradiction", 0.8 * (0.65 * 0.5 + 0.20 * 0.4 + 0.10 * 0.3) / 0.95),
    ],
)
def test_a_term_that_is_left_out_leaves_the_others_their_proportions(without: str | None, expected: float) -> None:
    scores = CandidateScores(fidelity=0.5, cycle=0.4, diversity=0.3, contradiction=0.25)
    assert generation_reward(0.8, scores, without) == pytest.approx(expected, abs=1e-12)
