"""Do sampling and scoring agree? Log-probs scored by the weights that sampled, against those stored while sampling.

They differ by rounding, or because the scores are those of another policy: an adapter that is off or another role's,
another prompt, image or position. What tells these apart is the mean of k3 over tokens. It estimates the KL from the
one policy to the other, to which rounding adds half its variance: 0.0035 nats in bfloat16 at a top logit of 28, against
0.05 for a policy at a KL of 0.05. The means of |log rho| are 0.043 and 0.17, those of 100 tokens much nearer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
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


@dataclass(frozen=True)
class Drift:
    """Replayed log-probs against stored ones, over the tokens of an update, of all processes: mean k3 in nats, which is
    judged; mean absolute log ratio in nats; share of tokens whose ratio lies outside of the clip."""

    kl: float
    log_ratio: float
    beyond_clip: float


@torch.no_grad()
def drift_sums(scored: Tensor, stored: Tensor, again: tuple[Tensor, Tensor], clip: float) -> tuple[float, ...]:
    """Return the sums over the tokens of this process that a :class:`NoiseFloor` judges.

    Args:
        scored: (T,) nats, T >= 1, under the weights that sampled.
        stored: (T,) nats, as sampled.
        again: log-probs of a few tokens as scored, and as scored in another batch; of none if the floor is known.
        clip: half width of the trust region.
    """
    log_ratio = scored - stored
    beyond_clip = torch.expm1(log_ratio).abs() > clip
    found = k3(stored, scored).sum(), log_ratio.abs().sum(), beyond_clip.sum(), k3(*again).sum()
    kl, distance, beyond, noise = torch.stack(found).tolist()
    return len(scored), kl, distance, beyond, len(again[0]), noise


@dataclass
class NoiseFloor:
    """What rounding alone does to the log-probs of one role: the mean k3 per token, nats, between two scorings in
    different batches. Measured once in a run and part of its state; None until measured."""

    nats: float | None = None

    def limit(self, dtype: torch.dtype, tokens: int) -> float:
        """The largest mean k3 of so many tokens, >= 1, that passes for rounding.

        Twice the floor, and five standard errors: k3 of rounding has a standard deviation of about three means.
        """
        noise = min(max(self.nats or 0.0, LEAST_NOISE[dtype]), MOST_NOISE)
        return noise * (2 + 16 / math.sqrt(tokens))

    def judge(self, sums: Sequence[float], role: Role, dtype: torch.dtype) -> None:
        """Raise TrainingStopped if the log-probs of ``role`` over a base of ``dtype`` differ by more than rounding."""
        tokens, kl, _, _, measured, noise = sums
        limit = (NoiseFloor(noise / measured) if measured else self).limit(dtype, int(tokens))
        if kl / tokens > limit:
            raise TrainingStopped(
                f"replayed log-probs differ from the sampled ones: KL {kl / tokens:.3g} nats per token "
                f"({role.value}), where rounding gives less than {limit:.3g}",
                "samples are scored under another prompt, image, position or adapter than they were sampled from",
                "run the backbone's conformance checks; if they pass, its logits are too large for the dtype: use "
                "dtype=float32. The invariant is 'sampling and scoring agree' in docs/paper_map.md",
            )

    def settle(self, sums: Sequence[float]) -> Drift | None:
        """Keep the floor if it was measured; the drift, or None if nothing was compared. ``sums``: of all processes."""
        tokens, kl, distance, beyond, measured, noise = sums
        if measured and math.isfinite(noise):
            self.nats = noise / measured
        return Drift(kl / tokens, distance / tokens, beyond / tokens) if tokens else None
