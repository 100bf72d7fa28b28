"""Everything that is as wide as the vocabulary: at most 128 rows at a time, in float32."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from asg_core.models.decoding.causal_model import CausalModel


def raw_logits(model: CausalModel, hidden: Tensor) -> Tensor:
    """(n, D) -> (n, V) raw logits in float32 (float64 stays, for numerical checks); n <= 128."""
    logits = model.head(hidden)
    return logits if logits.dtype == torch.float64 else logits.float()


def policy_logprobs(logits: Tensor, temperature: Tensor | float, suppressed: Tensor) -> Tensor:
    """(n, V) raw logits -> (n, V) nats of the sampling policy: suppressed tokens out, softmax(logits / temperature).

    Sampling and scoring both use this function, so that replayed log-probs equal the sampled ones.
    """
    return (logits.index_fill(-1, suppressed, -torch.inf) / temperature).log_softmax(-1)


def token_entropy(logits: Tensor) -> Tensor:
    """Entropy of softmax(logits) over the last axis, in float32 whatever the input.

    Args:
        logits: (..., V) raw logits at temperature 1, any float dtype.

    Returns:
        (...) float32 nats in [0, ln V]; NaN where a row holds a non-finite logit.
    """
    entropy = torch.special.entr(torch.softmax(logits.float(), dim=-1)).sum(dim=-1)
    entropy = entropy.clamp(0.0, math.log(logits.shape[-1]))
    return torch.where(torch.isfinite(logits).all(dim=-1), entropy, torch.nan)
