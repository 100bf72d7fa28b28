"""Rewards of Proposer and Solver against numbers computed by hand from METHOD."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asg_core.method.answers import Vote, vote
from asg_core.method.rewards import (
    GATE_PENALTY,
    GATED,
    information,
    proposer_reward,
    self_consistency_reward,
    solver_learns,
    solver_rewards,
    unsolvable,
)
from devkit.sizes import fuzz


def votes(*sizes: int) -> Vote:
    """A vote with clusters of these sizes; labels a, b, c, ..."""
    return vote([chr(97 + i) for i, size in enumerate(sizes) for _ in range(size)], seed=0)


def test_self_consistency_peaks_at_nine_tenths() -> None:
    assert self_consistency_reward(0.9) == 1.0
    assert self_consistency_reward(0.65) == pytest.approx(math.exp(-0.5))
    assert self_consistency_reward(1.15) == pytest.approx(math.exp(-0.5))
    assert self_consistency_reward(0.0) == pytest.approx(math.exp(-6.48))


def test_proposer_reward_by_hand() -> None:
    # 4/2/1: H = .95570, r_sc = exp(-(.0557)^2 / .125) = .97549
    scored = proposer_reward(votes(4, 2, 1), 0.6)
    assert scored.self_consistency == pytest.approx(0.97549, abs=1e-5)
    assert scored.value == pytest.approx(0.7 * 0.6 + 0.3 * 0.97549, abs=1e-5)
    assert (scored.ste_percentile, scored.reason) == (0.6, "scored")


def test_without_ste_the_reward_is_self_consistency_alone() -> None:
    scored = proposer_reward(votes(4, 2, 1), None)
    assert scored.value == scored.self_consistency == pytest.approx(0.97549, abs=1e-5)
    assert (scored.ste_percentile, scored.reason) == (None, "scored")


@pytest.mark.parametrize("percentile", [None, 0.0, 0.5, 1.0])
def test_unsolvable_question_cannot_be_overridden(percentile: float | None) -> None:
    scored = proposer_reward(votes(1, 1, 1, 1, 1, 1, 1), percentile)
    assert (scored.value, scored.reason) == (0.0, "unsolvable")


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [((1,) * 7, True), ((2, 1, 1, 1, 1, 1), False), ((1, 1, 1), True), ((2, 1), False), ((7,), False)],
)
def test_unsolvable_means_that_no_two_answers_agree(sizes: tuple[int, ...], expected: bool) -> None:
    assert unsolvable(votes(*sizes)) is expected


def test_an_agreed_question_earns_only_if_tokens_were_uncertain() -> None:
    capped = proposer_reward(votes(6, 1), 0.49)
    assert (capped.value, capped.reason) == (0.20, "agreed")
    uncertain = proposer_reward(votes(6, 1), 0.5)
    assert uncertain.value == pytest.approx(0.35 + 0.3 * self_consistency_reward(votes(6, 1).entropy))
    assert uncertain.reason == "scored"
    below = proposer_reward(votes(7), 0.1)
    assert below.value == pytest.approx(0.07 + 0.3 * math.exp(-6.48))
    assert below.reason == "scored"
    # 5 of 7 is not agreed (f = .714 < .85)
    assert proposer_reward(votes(5, 2), 0.49).reason == "scored"
    assert proposer_reward(votes(5, 2), 0.49).value > 0.45


def test_the_gate_is_a_penalty_never_a_bonus() -> None:
    assert GATE_PENALTY == -0.2
    assert (GATED.value, GATED.reason) == (GATE_PENALTY, "gate")
    assert proposer_reward(votes(7), 0.0).value > GATE_PENALTY


@pytest.mark.parametrize("bad", [math.nan, -0.01, 1.01])
def test_a_percentile_out_of_range_is_refused(bad: float) -> None:
    with pytest.raises(ValueError, match="d_ste"):
        proposer_reward(votes(4, 2, 1), bad)


@fuzz(100)
@given(st.lists(st.sampled_from("abcd"), min_size=2, max_size=7), st.none() | st.floats(0, 1))
def test_a_proposer_reward_never_leaves_zero_one(labels: list[str], percentile: float | None) -> None:
    assert 0.0 <= proposer_reward(vote(labels, 0), percentile).value <= 1.0


def test_solver_rewards_of_the_method_example() -> None:
    rewards = solver_rewards(vote(["r", "b", "r", "g", "r", "b", "r"], seed=0))
    assert rewards == pytest.approx([0.5236, -0.0806, 0.5236, -0.0496, 0.5236, -0.0806, 0.5236], abs=5e-5)


def test_information_by_hand() -> None:
    assert information(0.675, 0.0) == 1.0
    assert information(0.675, 0.45) == pytest.approx(0.75)
    assert information(0.675, 0.9) == pytest.approx(0.5)
    assert information(0.675, 1.0) == pytest.approx(0.5)
    assert information(0.0, 1.0) == pytest.approx(0.5 * math.exp(-0.455625 / 0.55125))
    assert information(40.0, 1.0) == 1e-4


@fuzz(100)
@given(st.lists(st.sampled_from("abcd"), min_size=2, max_size=9), st.integers(0, 2**62))
def test_only_the_majority_is_rewarded(labels: list[str], seed: int) -> None:
    result = vote(labels, seed)
    for label, reward in zip(result.labels, solver_rewards(result), strict=True):
        assert (reward > 0) == (label == result.majority)
        assert -0.25 <= reward <= 1.0


@pytest.mark.parametrize(
    ("sizes", "learns"),
    [((6, 1), True), ((4, 2, 1), True), ((3, 2, 2), False), ((7,), False), ((1,) * 7, False), ((4, 4), True)],
)
def test_the_solver_learns_where_half_agree_but_not_all(sizes: tuple[int, ...], learns: bool) -> None:
    assert solver_learns(votes(*sizes), 0.5) is learns


def test_the_agreement_gate_is_the_callers() -> None:
    assert solver_learns(votes(3, 2, 2), 0.4)
    assert not solver_learns(votes(4, 3), 0.6)
    assert not solver_learns(votes(1, 1), 0.0)


@pytest.mark.parametrize("label", ["", "other"])
def test_the_solver_never_learns_to_say_nothing(label: str) -> None:
    assert not solver_learns(vote([label] * 6 + ["red"], 0), 0.5)
    assert solver_learns(vote(["red"] * 6 + [label], 0), 0.5)
