"""Solver Token Entropy (STE): how uncertain the Solver was while it answered (METHOD, understanding step 4)."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from typing import Literal

from asg_core.backbones.interface import TextSample
from asg_core.method.answers import answer_span


def solver_token_entropy(sample: TextSample, tokens: int, reduce: Literal["max", "mean", "off"]) -> float | None:
    """Raw STE of one greedy answer: max (or mean) of its token entropies, nats.

    Counts the first ``tokens`` tokens whose text overlaps the answer span; tag, label and white-space tokens never
    count. None, never 0 or NaN, when there is no such token, when one of them is not finite, or with "off".
    """
    if reduce == "off":
        return None
    start, end = answer_span(sample.text)
    chosen: list[float] = []
    position = 0
    for piece, entropy in zip(sample.pieces, sample.entropies, strict=True):
        if position < end and position + len(piece) > start and piece.strip():
            chosen.append(entropy)
        position += len(piece)
    chosen = chosen[:tokens]
    if not chosen or not all(math.isfinite(entropy) for entropy in chosen):
        return None
    return max(chosen) if reduce == "max" else math.fsum(chosen) / len(chosen)


class RollingPercentile:
    """d_ste: where a raw STE stands among the last ones.

    Args:
        window: how many raw values are remembered.
        warmup: below this many remembered values a fixed sigmoid stands in for the percentile.
    """

    def __init__(self, window: int = 128, warmup: int = 8) -> None:
        self._values: deque[float] = deque(maxlen=window)
        self._window, self._warmup = window, warmup

    def difficulty(self, raw: float) -> float:
        """Mid-rank percentile of ``raw`` (finite, nats) in the window, in [0, 1]; ask before inserting it."""
        _require_finite(raw)
        if len(self._values) < self._warmup:
            return 1 / (1 + math.exp(-1.5 * (raw - 2.0)))
        below = sum(value < raw for value in self._values)
        equal = sum(value == raw for value in self._values)
        return (below + 0.5 * equal) / len(self._values)

    def insert(self, raw: float) -> None:
        """Remember ``raw``, forgetting the oldest value of a full window. ValueError if it is not finite."""
        _require_finite(raw)
        self._values.append(raw)

    def state(self) -> list[float]:
        """The window, oldest first, for a checkpoint."""
        return list(self._values)

    def restore(self, values: Iterable[float]) -> None:
        """Replace the window by what :meth:`state` returned. ValueError if a value is not finite or they do not fit."""
        restored = list(values)
        _require_finite(*restored)
        if len(restored) > self._window:
            raise ValueError(f"{len(restored)} values do not fit a window of {self._window}")
        self._values = deque(restored, self._window)


def _require_finite(*raws: float) -> None:
    for raw in raws:
        if not math.isfinite(raw):
            raise ValueError(f"a raw STE must be finite, got {raw}")
