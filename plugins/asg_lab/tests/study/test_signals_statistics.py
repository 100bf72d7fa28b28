"""The arithmetic of signals against the truth, by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asg_lab.study.signals.statistics import (
    FEW,
    auroc,
    auroc_estimate,
    calibration_error,
    calibration_estimate,
    concordance,
    ratio_estimate,
    reliability,
    wilson_interval,
)


def floats(*values: float) -> np.ndarray:
    return np.array(values, dtype=float)


def truths(*values: int) -> np.ndarray:
    return np.array(values, dtype=bool)


def test_auroc_by_hand_ties_count_half():
    # Positives 2 and 3, negatives 1 and 2: of four pairs three are won and one is tied.
    assert auroc(floats(1, 2, 2, 3), truths(0, 1, 0, 1)) == pytest.approx(3.5 / 4)
    assert auroc(floats(1, 1, 1), truths(0, 1, 0)) == 0.5
    assert auroc(floats(3, 2, 1), truths(0, 0, 1)) == 0.0


@pytest.mark.parametrize("positive", [(0, 0, 0), (1, 1, 1)])
def test_auroc_is_missing_where_one_class_is_empty(positive: tuple[int, ...]):
    assert auroc(floats(1, 2, 3), truths(*positive)) is None
    found = auroc_estimate(floats(1, 2, 3), truths(*positive))
    assert (found.value, found.low, found.n, found.positives) == (None, None, 3, sum(positive))


@given(st.lists(st.tuples(st.integers(0, 4), st.booleans()), min_size=2, max_size=30))
def test_auroc_is_the_share_of_pairs_won(items: list[tuple[int, bool]]):
    high = [s for s, p in items if p]
    low = [s for s, p in items if not p]
    pairs = [1.0 if a > b else 0.5 if a == b else 0.0 for a in high for b in low]
    found = auroc(floats(*(s for s, _ in items)), truths(*(p for _, p in items)))
    assert found == (pytest.approx(sum(pairs) / len(pairs)) if pairs else None)


def test_a_class_of_few_members_gets_no_interval():
    scores = np.arange(40.0)
    few, enough = scores >= 40 - (FEW - 1), scores >= 40 - FEW
    assert auroc_estimate(scores, few).low is None
    assert auroc_estimate(scores, few).value == 1.0
    found = auroc_estimate(scores, enough)
    assert (found.low, found.high) == (1.0, 1.0)


def test_an_interval_covers_an_uninformative_signal_and_is_the_same_every_time():
    rng = np.random.default_rng(5)
    scores, positive = rng.normal(size=400), rng.random(400) < 0.3
    found = auroc_estimate(scores, positive)
    assert found == auroc_estimate(scores, positive)
    assert found.low is not None
    assert found.high is not None
    assert found.low < 0.5 < found.high
    # The standard error of an AUROC of 0.5 is about sqrt((n + m + 1) / (12 n m)) = 0.032 here.
    assert 0.09 < found.high - found.low < 0.16


def test_bins_hold_counts_of_each_distinct_share():
    bins = reliability(floats(4 / 7, 1, 4 / 7, 1, 1), truths(1, 1, 0, 1, 0))
    assert [(b.share, b.n, b.right) for b in bins] == [(4 / 7, 2, 1), (1.0, 3, 2)]


def test_the_interval_of_a_share_by_hand():
    # Eight of ten, Wilson: (0.8 + 0.1921 +- 1.96 sqrt(0.016 + 0.0096)) / 1.3841.
    assert wilson_interval(8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    low, high = wilson_interval(58, 58)
    assert 0.93 < low < 0.95
    assert high == pytest.approx(1.0)
    assert wilson_interval(0, 3)[0] == pytest.approx(0.0, abs=1e-12)


def test_calibration_error_by_hand():
    # Share .5: half is right, no gap. Share 1: half is right, a gap of .5, and half of the questions are there.
    assert calibration_error(floats(0.5, 0.5, 1, 1), truths(1, 0, 1, 0)) == pytest.approx(0.25)
    assert calibration_error(floats(1, 1), truths(1, 1)) == 0.0
    # Gaps of opposite sign do not cancel: .5 too low in one bin, .5 too high in the other.
    assert calibration_error(floats(0.5, 1), truths(1, 0)) == pytest.approx(0.5 * 0.5 + 0.5 * 1.0)
    assert calibration_estimate(floats(), truths()).value is None


def test_calibration_interval_covers_the_error_that_it_is_about():
    shares = np.repeat([0.5, 1.0], 200)
    right = np.tile([True, False], 200)
    found = calibration_estimate(shares, right)
    assert found.value == pytest.approx(0.25)
    assert found.low is not None
    assert found.high is not None
    assert found.low < 0.25 < found.high


def test_a_ratio_is_over_items_and_its_interval_over_clusters():
    found = ratio_estimate(floats(3, 0, 0), floats(3, 1, 0))
    assert (found.value, found.n, found.low) == (0.75, 4, None)
    assert ratio_estimate(floats(), floats()).value is None
    # Twenty images of ten questions, all right or all wrong: as uncertain as twenty coin flips, not as two hundred.
    halves = ratio_estimate(np.tile([10.0, 0.0], 10), np.full(20, 10.0))
    singles = ratio_estimate(np.tile([1.0, 0.0], 100), np.ones(200))
    assert halves.value == singles.value == 0.5
    assert halves.low is not None
    assert singles.low is not None
    assert halves.low < 0.35 < singles.low


def test_concordance_counts_pairs_of_different_quality_only():
    # Pairs by quality: (0, 1) and (2, 1) are decided; drawings 0 and 2 are equally good.
    assert concordance(floats(0.9, 0.5, 0.5), floats(1, 0, 1)) == (1.5, 2)
    assert concordance(floats(0.1, 0.2), floats(1, 1)) == (0.0, 0)
    assert concordance(floats(), floats()) == (0.0, 0)
