"""What an evaluation receives and returns. An evaluation may read ground truth; training never does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from asg_core.backbones.interface import Backbone


@dataclass(frozen=True)
class EvalItem:
    """The score of one evaluation item. Two evaluations of the same suite share ``key``s, so they can be paired.

    Attributes:
        section: headline table row, e.g. "understanding, canonical framing" or "generation".
        category: finer group inside the section, e.g. "colour".
        key: identity of the item inside the section, equal before and after.
        score: in [0, 1].
    """

    section: str
    category: str
    key: str
    score: float


@dataclass(frozen=True)
class EvaluationRequest:
    """What an evaluation function receives.

    Attributes:
        trained: True evaluates Solver and Generator adapters, False the base policy (``role=None``).
        seed: of the evaluation's own random streams; equal seeds give equal items.
        limit: at most this many items per section, or None for the suite's own size.
        progress: called with (done, total) fractions of work, for a progress display.
    """

    backbone: Backbone
    trained: bool
    seed: int = 0
    limit: int | None = None
    progress: Callable[[int, int], None] = field(default=lambda done, total: None)
