"""The clipped policy loss, the k3 estimate of KL, and the weight that steers KL (METHOD, Policy update)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


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
