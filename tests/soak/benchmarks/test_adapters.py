"""What adapters cost a decoder layer at released width: counted, with PEFT's own forward beside it."""

from __future__ import annotations

import pytest

from adapters import MLP, SIZES, WIDTH, compared


@pytest.fixture(scope="module", params=[8, 3204])
def costs(request):
    return request.param, compared(request.param)


def test_a_linear_layer_is_three_kernels_and_four_with_gradients(costs):
    _, found = costs
    assert found["PEFT"].forward[0] == 7 * len(SIZES)
    assert found["ours"].forward[0] == 3 * len(SIZES)
    assert found["ours"].tracked[0] == 4 * len(SIZES)


@pytest.mark.parametrize(
    ("part", "few", "many"), [("forward", 0.22, 0.11), ("tracked", 0.34, 0.27), ("backward", None, 0.33)]
)
def test_bytes_that_an_adapter_adds_are_a_fraction_of_those_of_peft(costs, part, few, many):
    """Of few tokens a backward pass moves little beside the adapters themselves; no update has so few."""
    tokens, found = costs
    base, theirs, ours = (getattr(found[name], part)[1] for name in ("no adapter", "PEFT", "ours"))
    bound = many if tokens > 1000 else few
    assert bound is None or ours - base < bound * (theirs - base)


def test_saved_is_every_distinct_input_once_in_the_dtype_of_the_base(costs):
    tokens, found = costs
    assert found["ours"].saved == tokens * 2 * (3 * WIDTH + MLP)
    assert found["PEFT"].saved > tokens * 4 * (6 * WIDTH + MLP)
