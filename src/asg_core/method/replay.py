"""Do sampling and scoring agree? Log-probs scored by the weights that sampled, against those stored while sampling.

They differ by rounding, or because the scores are those of another policy: an adapter that is off or another role's,
another prompt, image or position. What tells these apart is the mean of k3 over tokens. It estimates the KL from the
one policy to the other, to which rounding adds half its variance: 0.0035 nats in bfloat16 at a top logit of 28, against
0.05 for a policy at a KL of 0.05. The means of |log rho| are 0.043 and 0.17, those of 100 tokens much nearer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from asg_core.backbones.interface import Role
from asg_core.errors import TrainingStopped
from asg_core.method.losses import k3

LEAST_NOISE = {torch.float64: 1e-12, torch.float32: 1e-7, torch.float16: 1e-4, torch.bfloat16: 4e-3}
"""Mean k3, nats per token, that rounding is granted by dtype of the base, however little of it was measured: kernels
that round alike in two batches of scores may still round otherwise in the passes that sample."""

MOST_NOISE = 0.012
"""The same, at most: beyond it, rounding could not be told from a wrong adapter. At released size on an H200, at a top
logit of 28, two batches of scores differ by 0.006, samples and scores by up to 0.012 (benchmarks/RESULTS.md)."""


@dataclass
class NoiseFloor:
    """What rounding alone does to the log-probs of one role. Measured once in a run and part of its state.

    Attributes:
        nats: mean k3 per token between two scorings in different batches; None until measured.
    """

    nats: float | None = None

    def limit(self, dtype: torch.dtype, tokens: int) -> float:
        """The largest mean k3 of so many tokens, >= 1, that passes for rounding.

        Twice the floor, and five standard errors: k3 of rounding has a standard deviation of about three means.
        """
        noise = min(max(self.nats or 0.0, LEAST_NOISE[dtype]), MOST_NOISE)
        return noise * (2 + 16 / math.sqrt(tokens))


@dataclass(frozen=True)
class Drift:
    """Replayed log-probs against stored ones, means over the tokens of an update, of all processes.

    Attributes:
        kl: k3 in nats, what is judged.
        log_ratio: absolute log ratio in nats.
        beyond_clip: share of tokens whose ratio lies outside of the clip.
    """

    kl: float
    log_ratio: float
    beyond_clip: float


class Replay:
    """The comparison of one update.

    Args:
        floor: of the role; measured now if it is not yet known. None: taken for the least there is.
        clip: half width of the trust region.

    Attributes:
        sums: what this process adds to those that :meth:`settle` takes.
    """

    def __init__(self, floor: NoiseFloor | None, clip: float) -> None:
        self._floor = floor or NoiseFloor(0.0)
        self._clip = clip
        self.sums: tuple[float, ...] = (0.0,) * 6

    @torch.no_grad()
    def check(
        self,
        scored: Tensor,
        stored: Tensor,
        again: Callable[[], tuple[Tensor, Tensor]],
        role: Role,
        dtype: torch.dtype,
    ) -> None:
        """Compare the tokens of this process.

        Args:
            scored: (T,) nats, T >= 1, under the weights of ``role`` that sampled, over a base of ``dtype``.
            stored: (T,) nats, as sampled.
            again: log-probs of a few tokens as scored, and as scored in another batch; called to measure the floor.

        Raises:
            TrainingStopped: they differ by more than rounding.
        """
        log_ratio = scored - stored
        beyond_clip = torch.expm1(log_ratio).abs() > self._clip
        first, second = again() if self._floor.nats is None else (scored[:0], scored[:0])
        found = k3(stored, scored).sum(), log_ratio.abs().sum(), beyond_clip.sum(), k3(first, second).sum()
        kl, distance, beyond, noise = torch.stack(found).tolist()
        self.sums = len(scored), kl, distance, beyond, len(first), noise
        floor = NoiseFloor(noise / len(first)) if len(first) else self._floor
        limit = floor.limit(dtype, len(scored))
        if kl / len(scored) > limit:
            raise TrainingStopped(
                f"replayed log-probs differ from the sampled ones: KL {kl / len(scored):.3g} nats per token "
                f"({role.value}), where rounding gives less than {limit:.3g}",
                "samples are scored under another prompt, image, position or adapter than they were sampled from",
                "run the backbone's conformance checks; if they pass, its logits are too large for the dtype: use "
                "dtype=float32. The invariant is 'sampling and scoring agree' in docs/paper_map.md",
            )

    def settle(self, sums: Sequence[float]) -> Drift | None:
        """Keep the floor if it was measured; the drift, or None if nothing was compared. ``sums``: of all processes."""
        tokens, kl, distance, beyond, measured, noise = sums
        if measured and math.isfinite(noise):
            self._floor.nats = noise / measured
        return Drift(kl / tokens, distance / tokens, beyond / tokens) if tokens else None
