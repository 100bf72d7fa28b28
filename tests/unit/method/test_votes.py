"""Votes: shares, ties, margins and entropies by hand."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asg_core.method.answers import vote
from devkit.sizes import fuzz

LABELS = st.lists(st.sampled_from(["red", "blue", "2", "yes", ""]), min_size=1, max_size=9)


def test_vote_of_the_method_example() -> None:
    result = vote(["blue", "red", "red", "green", "red", "blue", "red"], seed=0)
    assert result.majority == "red"
    assert result.majority_share == pytest.approx(0.5714, abs=5e-5)
    assert result.margin == pytest.approx(0.2857, abs=5e-5)
    assert result.entropy == pytest.approx(0.9557, abs=5e-5)
    assert list(result.shares) == ["red", "blue", "green"]
    assert result.labels == ("blue", "red", "red", "green", "red", "blue", "red")
    assert not result.tied


def test_a_unanimous_vote_has_exactly_no_entropy() -> None:
    result = vote(["red"] * 7, seed=0)
    assert (result.majority_share, result.margin, result.entropy, result.tied) == (1.0, 1.0, 0.0, False)
    assert math.copysign(1, result.entropy) == 1


def test_seven_different_answers_have_the_largest_entropy() -> None:
    result = vote(list("abcdefg"), seed=0)
    assert result.entropy == pytest.approx(math.log(7))
    assert result.margin == 0.0
    assert result.tied


def test_a_tie_is_drawn_by_seed_and_reported() -> None:
    labels = ["red", "blue", "red", "blue", "green"]
    winners = {vote(labels, seed).majority for seed in range(40)}
    assert winners == {"red", "blue"}
    assert all(vote(labels, seed).tied for seed in range(5))
    assert all(next(iter(vote(labels, seed).shares)) == vote(labels, seed).majority for seed in range(5))
    assert vote(labels, 3) == vote(labels, 3)


def test_no_vote_without_answers() -> None:
    with pytest.raises(ValueError, match="at least one"):
        vote([], seed=0)


@fuzz(100)
@given(LABELS, st.randoms(use_true_random=False), st.integers(0, 2**62))
def test_a_vote_does_not_depend_on_the_order_of_answers(labels: list[str], random: object, seed: int) -> None:
    shuffled = list(labels)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    one, two = vote(labels, seed), vote(shuffled, seed)
    assert list(one.shares.items()) == list(two.shares.items())
    assert (one.majority, one.majority_share, one.margin, one.entropy, one.tied) == (
        two.majority, two.majority_share, two.margin, two.entropy, two.tied,
    )  # fmt: skip


@fuzz(100)
@given(LABELS, st.integers(0, 2**62))
def test_vote_shares_are_a_distribution(labels: list[str], seed: int) -> None:
    result = vote(labels, seed)
    shares = list(result.shares.values())
    assert math.fsum(shares) == pytest.approx(1.0)
    assert shares == sorted(shares, reverse=True)
    assert result.majority_share == shares[0] == labels.count(result.majority) / len(labels)
    assert 0.0 <= result.margin <= 1.0
    assert 0.0 <= result.entropy <= math.log(len(labels)) + 1e-12
