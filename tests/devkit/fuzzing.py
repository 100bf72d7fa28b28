"""How much is tried: a fifth of everything by default, all of it before a release (``tox -e soak``)."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, settings

FULL = os.environ.get("ASG_SOAK") == "1"
SHARE = 5


def fuzz(examples: int) -> Callable[[Any], Any]:
    """Try a test on ``examples`` inputs at full size, the same ones in every run."""
    return settings(
        max_examples=examples if FULL else -(-examples // SHARE),
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
