"""From the rewards of a group to loss terms: advantages, weights, the clipped loss and KL (METHOD, Policy update).

Rewards passed in are finite: a non-finite one is dropped and counted by the caller, here it is a ValueError.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

_EQUAL = 1e-9
"""Rewards closer than this are equal: rounding noise must not become a direction to learn in."""


def _checked(rewards: Sequence[float]) -> bool:
    """Whether the rewards of a group carry a signal, that is, are not all equal. ValueError if one is not finite."""
    if not all(math.isfinite(reward) for reward in rewards):
        raise ValueError(f"rewards must be finite, got {list(rewards)}")
    return bool(rewards) and max(rewards) - min(rewards) > _EQUAL


def z_score(rewards: Sequence[float]) -> list[float]:
    """(R - mean) / std of a group, population std; exact zeros where std < 1e-6. The Proposer's advantage (GRPO)."""
    if not _checked(rewards):
        return [0.0] * len(rewards)
    mean = math.fsum(rewards) / len(rewards)
    std = math.sqrt(math.fsum((reward - mean) ** 2 for reward in rewards) / len(rewards))
    return [(reward - mean) / std if std >= 1e-6 else 0.0 for reward in rewards]


def over_finite(advantages: Callable[[Sequence[float]], list[float]], rewards: Sequence[float]) -> list[float]:
    """``advantages`` among the finite rewards of a group; NaN, which an update drops and counts, for the others."""
    present = iter(advantages([reward for reward in rewards if math.isfinite(reward)]))
    return [next(present) if math.isfinite(reward) else math.nan for reward in rewards]


def leave_one_out(rewards: Sequence[float]) -> list[float]:
    """A_i = R_i - mean of the others = (R_i - mean) N/(N-1); exact zeros for equal rewards. The Solver's advantage."""
    n = len(rewards)
    if not _checked(rewards):
        return [0.0] * n
    mean = math.fsum(rewards) / n
    return [(reward - mean) * n / (n - 1) for reward in rewards]


@dataclass
class EmaBaseline:
    """The paper's running baseline, an option for the Solver: A = R - b, and b moves once per step, after its use.

    Attributes:
        momentum: share of the old baseline that stays, in [0, 1).
        value: b, in the units of the rewards.
    """

    momentum: float = 0.6
    value: float = 0.0

    def advantages(self, rewards: Sequence[float]) -> list[float]:
        """R - b of each reward. Leaves b as it is."""
        _checked(rewards)
        return [reward - self.value for reward in rewards]

    def update(self, rewards: Sequence[float]) -> None:
        """b <- momentum b + (1 - momentum) mean, over all rewards of a step. Without rewards b stays."""
        _checked(rewards)
        if rewards:
            self.value = self.momentum * self.value + (1 - self.momentum) * math.fsum(rewards) / len(rewards)


def regression_weights(rewards: Sequence[float], tau: float) -> list[float]:
    """softmax(R / tau) over the candidates of one prompt: >= 0, sum 1; all exactly 0 when all rewards are equal.

    ``tau`` > 0 is in the units of the rewards. A single candidate counts as equal: there is nothing to prefer.
    """
    if not _checked(rewards):
        return [0.0] * len(rewards)
    best = max(rewards)
    odds = [math.exp((reward - best) / tau) for reward in rewards]
    total = math.fsum(odds)
    return [value / total for value in odds]


def clipped_policy_terms(logprobs: Tensor, old: Tensor, advantage: float, clip: float) -> Tensor:
    """The (T,) loss terms -min(A rho, A clip(rho, 1 - clip, 1 + clip)), rho = exp(logprobs - old).

    Args:
        logprobs: (T,) nats under the current policy, with gradient.
        old: (T,) nats under the policy that sampled the tokens; no gradient flows into it.
        advantage: A of the whole sample.
        clip: half width of the trust region, in (0, 1).
    """
    rho = torch.exp(logprobs - old.detach())
    return -torch.minimum(advantage * rho, advantage * rho.clamp(1 - clip, 1 + clip))


def k3(logprobs: Tensor, base_logprobs: Tensor) -> Tensor:
    """Unbiased, non-negative estimate of KL(policy || base), (T,) nats: exp(d) - 1 - d, d = base - policy.

    Args:
        logprobs: (T,) nats under the policy that sampled, with gradient.
        base_logprobs: (T,) nats under the adapters-off model; no gradient flows into it.
    """
    difference = base_logprobs.detach() - logprobs
    return torch.expm1(difference) - difference


@dataclass
class AdaptiveKl:
    """Weight of the KL term, steered so that the mean KL per token stays near ``target`` nats.

    Attributes:
        beta: the weight; after an update in [1e-3, 100].
        target: mean KL per token aimed at, nats, > 0.
        rate: how strongly a relative error moves log beta.
    """

    beta: float
    target: float = 0.02
    rate: float = 0.1

    def update(self, mean_kl: float) -> None:
        """beta <- clip(beta exp(rate clip((KL - target)/target, -50, 50)), 1e-3, 100).

        A KL that is not finite changes nothing.
        """
        if math.isfinite(mean_kl):
            error = min(max((mean_kl - self.target) / self.target, -50.0), 50.0)
            self.beta = min(max(self.beta * math.exp(self.rate * error), 1e-3), 100.0)
