"""Solver token entropy: full vocabulary, answer span only, no value rather than a wrong one, mid-rank percentiles."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from asg_core.backbones.interface import TextRequest, TextSample
from asg_core.method.token_entropy import RollingPercentile, solver_token_entropy
from asg_core.models.decoding import token_entropy
from devkit.sizes import fuzz

FINITE = st.floats(0.0, 12.0)


def sample(*tokens: tuple[str, float]) -> TextSample:
    """A greedy completion from (piece, entropy) pairs."""
    pieces = tuple(piece for piece, _ in tokens)
    return TextSample(
        request=TextRequest("What is it?", None, 0),
        text="".join(pieces),
        token_ids=tuple(range(len(pieces))),
        pieces=pieces,
        logprobs=(0.0,) * len(pieces),
        entropies=tuple(entropy for _, entropy in tokens),
        finish_reason="stop",
        temperature=1.0,
    )


def test_entropy_of_known_distributions() -> None:
    uniform = torch.zeros(50)
    certain = torch.tensor([0.0] * 49 + [1000.0])
    half = torch.tensor([3.0, 3.0] + [-500.0] * 48)
    quarter = torch.tensor([math.log(0.5), math.log(0.25), math.log(0.25)] + [-500.0] * 47)
    entropies = token_entropy(torch.stack([uniform, certain, half, quarter]))
    expected = [math.log(50), 0.0, math.log(2), 1.5 * math.log(2)]
    assert entropies.tolist() == pytest.approx(expected, abs=1e-6)


def test_entropy_is_float32_whatever_the_logits() -> None:
    logits = torch.randn(3, 4, 30_000, generator=torch.Generator().manual_seed(0)).bfloat16()
    entropies = token_entropy(logits)
    assert entropies.shape == (3, 4)
    assert entropies.dtype == torch.float32
    exact = torch.distributions.Categorical(logits=logits.double()).entropy()
    torch.testing.assert_close(entropies.double(), exact, rtol=0, atol=1e-4)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_row_that_is_not_finite_has_no_entropy_and_harms_no_other(bad: float) -> None:
    logits = torch.zeros(3, 4)
    logits[1, 2] = bad
    assert token_entropy(logits).isnan().tolist() == [False, True, False]


def test_huge_finite_logits_stay_finite() -> None:
    assert token_entropy(torch.tensor([[3e38, -3e38, 0.0]])).tolist() == [0.0]


def test_tag_tokens_are_not_in_the_ste_span() -> None:
    tagged = sample(("<", 9.0), ("answer", 9.0), (">", 9.0), ("red", 0.5), (" car", 0.7), ("</answer>", 9.0), ("", 9.0))
    assert solver_token_entropy(tagged, 5, "max") == 0.7
    labelled = sample(("Answer", 9.0), (":", 9.0), (" ", 9.0), ("red", 0.5), ("", 9.0))
    assert solver_token_entropy(labelled, 5, "max") == 0.5


def test_a_token_that_overlaps_the_answer_counts() -> None:
    assert solver_token_entropy(sample(("Answer: re", 2.0), ("d", 0.1)), 5, "max") == 2.0


def test_the_first_tokens_are_those_of_the_answer() -> None:
    answer = sample(("Answer:", 9.0), (" one", 0.1), ("\n", 9.0), (" two", 0.2), (" three", 0.3), (" four", 0.4))
    assert solver_token_entropy(answer, 2, "max") == 0.2
    assert solver_token_entropy(answer, 3, "max") == 0.3
    assert solver_token_entropy(answer, 99, "max") == 0.4


def test_white_space_and_the_stop_token_do_not_count() -> None:
    assert solver_token_entropy(sample((" ", 9.0), ("red", 0.5), (" ", 9.0), ("car", 0.1), ("", 9.0)), 5, "max") == 0.5


def test_mean_reduces_over_the_same_tokens() -> None:
    answer = sample(("<answer>", 9.0), ("red", 0.5), (" car", 0.7), ("</answer>", 9.0))
    assert solver_token_entropy(answer, 5, "mean") == pytest.approx(0.6)
    assert solver_token_entropy(answer, 1, "mean") == 0.5


def test_ste_is_missing_never_zero_or_nan() -> None:
    assert solver_token_entropy(sample(("red", math.nan), ("car", 0.5)), 5, "max") is None
    assert solver_token_entropy(sample(("red", math.inf)), 5, "max") is None
    assert solver_token_entropy(sample(("", 1.0)), 5, "max") is None
    assert solver_token_entropy(sample(("<answer>", 1.0), ("</answer>", 1.0)), 5, "max") is None
    assert solver_token_entropy(sample(("red", 1.0)), 5, "off") is None


def test_a_nan_after_the_counted_tokens_does_not_matter() -> None:
    assert solver_token_entropy(sample(("red", 0.5), ("car", math.nan)), 1, "max") == 0.5


def filled(values: list[float], **options: int) -> RollingPercentile:
    window = RollingPercentile(**options)
    for value in values:
        window.insert(value)
    return window


def test_the_percentile_is_a_mid_rank() -> None:
    window = filled([1.0, 2.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0])
    assert window.difficulty(2.0) == (1 + 0.5 * 2) / 8
    assert window.difficulty(0.5) == 0.0
    assert window.difficulty(9.0) == 1.0
    assert window.difficulty(4.5) == 5 / 8


def test_a_minimum_that_others_share_does_not_map_to_zero() -> None:
    assert filled([0.0] * 20).difficulty(0.0) == 0.5


def test_a_cold_window_uses_the_sigmoid() -> None:
    window = filled([1.0] * 7)
    assert window.difficulty(2.0) == 0.5
    assert window.difficulty(3.0) == pytest.approx(1 / (1 + math.exp(-1.5)))
    window.insert(1.0)
    assert window.difficulty(2.0) == 1.0


def test_asking_does_not_move_the_window() -> None:
    window = filled([float(i) for i in range(10)])
    assert window.difficulty(3.0) == window.difficulty(3.0)
    assert window.state() == [float(i) for i in range(10)]


def test_the_window_forgets_the_oldest() -> None:
    window = filled([float(i) for i in range(130)])
    assert len(window.state()) == 128
    assert window.state()[0] == 2.0
    small = filled([5.0, 1.0, 2.0, 3.0], window=3, warmup=1)
    assert small.state() == [1.0, 2.0, 3.0]
    assert small.difficulty(4.0) == 1.0


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_are_refused(bad: float) -> None:
    window = filled([1.0])
    for refuse in (window.insert, window.difficulty, lambda raw: window.restore([raw])):
        with pytest.raises(ValueError, match="finite"):
            refuse(bad)
    assert window.state() == [1.0]


def test_a_restored_window_goes_on_exactly() -> None:
    window = filled([0.1 * i for i in range(100)])
    other = RollingPercentile()
    other.insert(99.0)
    other.restore(window.state())
    for raw in (3.3, 7.0, 12.9):
        assert other.difficulty(raw) == window.difficulty(raw)
        other.insert(raw)
        window.insert(raw)
    assert other.state() == window.state()


def test_a_state_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="do not fit a window of 3"):
        RollingPercentile(window=3).restore([1.0] * 4)


@fuzz(100)
@given(st.lists(FINITE, max_size=40), FINITE, FINITE)
def test_percentiles_stay_in_range_and_in_order(values: list[float], a: float, b: float) -> None:
    window = filled(values)
    low, high = window.difficulty(min(a, b)), window.difficulty(max(a, b))
    assert 0.0 <= low <= high <= 1.0
