"""How much is tried: by default what finds most, before a release everything (``tox -e soak`` sets ASG_SOAK=1)."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from hypothesis import HealthCheck, settings

FULL = os.environ.get("ASG_SOAK") == "1"
SHARE = 5
"""One in so many inputs of a fuzzed test, and points of the crash matrix, is tried by default."""

T = TypeVar("T")


def fuzz(examples: int) -> Callable[[Any], Any]:
    """Try a test on ``examples`` inputs at full size, the same ones in every run."""
    return settings(
        max_examples=examples if FULL else -(-examples // SHARE),
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


def at_full_size(always: Sequence[T], more: Sequence[T]) -> list[T]:
    """Cases of a test: ``always``, and at full size ``more`` too."""
    return [*always, *(more if FULL else ())]
