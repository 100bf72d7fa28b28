"""Backbones whose scores are not those of the tokens that were sampled, or teach nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from asg_core.backbones.interface import Role
from asg_core.models.decoding import scoring
from asg_core.tiny.backbone import TinyBackbone

from .registry import caught_by


@caught_by("scoring.gradient")
class DetachedPrefix(TinyBackbone):
    """Scores over a prefix that carries no gradient."""

    def token_logits(self, samples, role, **wanted):
        def detached(model, requests, kept=None):
            rows, prompts, node_of = prefill_prompts(model, requests, kept)
            for layer in rows.cache.layers:
                layer.keys, layer.values = layer.keys.detach(), layer.values.detach()
                layer.past = layer.keys, layer.values
            return rows, prompts, node_of

        prefill_prompts = scoring.prefill_prompts
        scoring.prefill_prompts = detached
        try:
            return super().token_logits(samples, role, **wanted)
        finally:
            scoring.prefill_prompts = prefill_prompts


@caught_by("scoring.replay")
class ShiftedLabels(TinyBackbone):
    """Scores each token with the row of its neighbour."""

    def token_logits(self, samples, role, **wanted):
        return [replace(s, logprobs=s.logprobs.roll(1)) for s in super().token_logits(samples, role, **wanted)]


@caught_by("scoring.replay")
class ScoresAsTheOtherRole(TinyBackbone):
    """Log-probs with a gradient or not, all are of the other text role's adapter."""

    def token_logits(self, samples, role, **wanted):
        other = {Role.SOLVER: Role.PROPOSER, Role.PROPOSER: Role.SOLVER}
        return super().token_logits(samples, other.get(role), **wanted)


@caught_by("scoring.labels")
class ShiftedEverywhere(TinyBackbone):
    """Off by one in sampling and scoring alike, so that both agree."""

    def solve(self, requests, sampling, role=Role.SOLVER):
        return [replace(s, logprobs=_turn(s.logprobs)) for s in super().solve(requests, sampling, role)]

    def token_logits(self, samples, role, **wanted):
        return [replace(s, logprobs=s.logprobs.roll(1)) for s in super().token_logits(samples, role, **wanted)]


@caught_by("scoring.replay")
class ScoresAtTemperatureOne(TinyBackbone):
    """Forgets the sampling temperature when it scores."""

    def token_logits(self, samples, role, **wanted):
        return super().token_logits([replace(s, temperature=1.0) for s in samples], role, **wanted)


@caught_by("scoring.batch")
class PadsOnTheLeft(TinyBackbone):
    """Scores shorter samples behind padding that the model sees."""

    def token_logits(self, samples, role, **wanted):
        longest = max(len(sample.token_ids) for sample in samples)
        padded = [replace(s, token_ids=(5,) * (longest - len(s.token_ids)) + s.token_ids) for s in samples]
        scored = super().token_logits(padded, role, **wanted)
        return [replace(x, logprobs=x.logprobs[-len(s.token_ids) :]) for x, s in zip(scored, samples, strict=True)]


@caught_by("scoring.base")
class BaseIsThePolicy(TinyBackbone):
    """KL and base log-probs are taken with the adapter on."""

    def token_logits(self, samples, role, **wanted):
        scored = super().token_logits(samples, role, **wanted)
        return [replace(s, base_logprobs=s.logprobs.detach(), kl=s.logprobs * 0) for s in scored]


@caught_by("scoring.all_adapters_learn")
class InertAdapter(TinyBackbone):
    """One adapter tensor is not in the graph."""

    def __init__(self, model, vocabulary, request):
        super().__init__(model, vocabulary, request)
        self._idle = torch.nn.Parameter(torch.ones(3))

    def trainable(self, role):
        return {**super().trainable(role), "idle": self._idle} if role is Role.SOLVER else super().trainable(role)


def _turn(values: Sequence[float]) -> tuple[float, ...]:
    return (*values[-1:], *values[:-1])
