"""Scores and losses of samples one by one, each in a forward of its own, to compare with."""

from __future__ import annotations

import math

import torch

from asg_core.backbones.interface import Role, TextSampling
from asg_core.models.decoding import sample_text, token_logits

SAMPLING = TextSampling(9, 0.8)


def sampled(rig, requests, role=Role.SOLVER, sampling=SAMPLING):
    with rig.adapters.use(role):
        return sample_text(rig.model, requests, sampling)


def policy(rig, sample):
    """(T, V) log-probs of the sampling policy from the stock model on one row."""
    raw = rig.logits(sample.request, sample.token_ids)
    barred = torch.zeros(raw.shape[-1], dtype=torch.bool)
    barred[list(rig.model.suppressed_token_ids)] = True
    return (raw.masked_fill(barred, -math.inf) / sample.temperature).log_softmax(-1)


def gradient(rig, role, loss):
    names, weights = zip(*rig.adapters.parameters(role).items(), strict=True)
    return dict(zip(names, torch.autograd.grad(loss, weights), strict=True))


def relative_error(got, expected):
    flat = [torch.cat([g[name].flatten() for name in expected]) for g in (got, expected)]
    return float((flat[0] - flat[1]).norm() / flat[1].norm())


def unshared_loss(rig, samples, advantages):
    """Policy gradient plus KL, sample by sample on the stock model."""
    total = torch.zeros((), dtype=rig.full.dtype)
    for sample, advantage in zip(samples, advantages, strict=True):
        with rig.adapters.use(Role.SOLVER):
            ours = policy(rig, sample)
        with torch.no_grad(), rig.adapters.use(None):
            base = policy(rig, sample)
        keep = base[0] > -math.inf
        kl = (ours[:, keep].exp() * (ours[:, keep] - base[:, keep])).sum()
        total = total + kl - advantage * ours.gather(-1, torch.tensor(sample.token_ids)[:, None]).sum()
    return total


def unshared_logprob(rig, samples):
    with rig.adapters.use(Role.SOLVER):
        return sum(policy(rig, s).gather(-1, torch.tensor(s.token_ids)[:, None]).sum() for s in samples)


def shared_loss(rig, samples, advantages, **options):
    scores = token_logits(rig.model, samples, rig.adapters, Role.SOLVER, base=True, **options)
    return sum(s.kl.sum() - a * s.logprobs.sum() for s, a in zip(scores, advantages, strict=True))


ADVANTAGES = [1.0, -0.5, 0.3, -1.2, 0.8, 0.1, -0.7, 0.9, -0.2, 0.4]
