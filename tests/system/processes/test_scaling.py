"""The simulation of many ranks, by hand."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

FILE = Path(__file__).parents[3] / "benchmarks" / "scaling.py"
spec = importlib.util.spec_from_file_location("scaling", FILE)
assert spec is not None
assert spec.loader is not None
scaling = importlib.util.module_from_spec(spec)
spec.loader.exec_module(scaling)

STEPS = [[[4.0, 1.0], [1.0, 1.0]], [[1.0, 1.0], [4.0, 1.0]], [[1.0, 1.0], [1.0, 1.0]]]
"""Three steps of two ranks with two chunks each; each rank is late once."""


def test_synchronous_ranks_wait_for_the_slowest() -> None:
    assert scaling.synchronous(STEPS, update=0.5) == (5 + 0.5) + (5 + 0.5) + (2 + 0.5)


def test_a_queue_gives_the_next_chunk_to_whoever_is_free() -> None:
    """4 | 1 1 1 in the first step; 1 | 4 then 1 1 for the free one in the second; 1 1 | 1 1 in the third."""
    assert scaling.queue(STEPS, update=0.5) == (4 + 0.5) + (4 + 0.5) + (2 + 0.5)


def test_one_step_of_staleness_lets_late_ranks_catch_up() -> None:
    """Rank 0 ends its steps at 5, 7 and 9, rank 1 at 2, 7 and 9: nobody waits, as both are late once."""
    assert scaling.stale(STEPS, update=0.0) == 9
    late = [[[4.0], [1.0]]] * 3
    assert scaling.stale(late, update=0.0) == 12  # who is always late sets the pace


def test_equal_chunks_lose_nothing() -> None:
    steps = [[[2.0] * 3] * 8] * 5
    for policy in (scaling.synchronous, scaling.queue, scaling.stale):
        assert policy(steps, update=0.0) == pytest.approx(30)
