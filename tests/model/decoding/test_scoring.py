"""Scoring: replayed log-probs, exact KL, and what is shared between calls."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from asg_core.backbones.interface import Role, TextRequest, TextSampling
from asg_core.models.decoding import PrefixCache, token_logits

from .unshared import (
    gradient,
    policy,
    relative_error,
    sampled,
    shared_loss,
    unshared_logprob,
)


def test_replayed_logprobs_and_entropies_equal_the_sampled_ones(rig, requests_of):
    samples = sampled(rig, requests_of(rig))
    scores = token_logits(rig.model, samples, rig.adapters, Role.SOLVER)
    for sample, score in zip(samples, scores, strict=True):
        assert score.logprobs.dtype == score.entropies.dtype == torch.float32
        assert score.logprobs.tolist() == pytest.approx(sample.logprobs, abs=2e-5)
        assert score.entropies.tolist() == pytest.approx(sample.entropies, abs=2e-5)
        assert score.base_logprobs is score.kl is score.logits is None


def test_base_scores_kl_and_logits_equal_the_unshared_model(rig, requests_of):
    samples = sampled(rig, requests_of(rig))
    scores = token_logits(rig.model, samples, rig.adapters, Role.SOLVER, base=True, logits=True)
    for sample, score in zip(samples, scores, strict=True):
        with torch.no_grad(), rig.adapters.use(None):
            base = policy(rig, sample)
        with torch.no_grad(), rig.adapters.use(Role.SOLVER):
            ours, raw = policy(rig, sample), rig.logits(sample.request, sample.token_ids)
        ids = torch.tensor(sample.token_ids)[:, None]
        keep = torch.isfinite(base[0])
        expected = torch.nn.functional.kl_div(base[:, keep], ours[:, keep], log_target=True, reduction="none").sum(-1)
        torch.testing.assert_close(score.base_logprobs, base.gather(-1, ids)[:, 0], rtol=0, atol=2e-5)
        torch.testing.assert_close(score.kl, expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(score.logits, raw, rtol=0, atol=3e-5)
        assert (score.kl > 1e-3).any()
        assert not score.base_logprobs.requires_grad
        assert not score.logits.requires_grad


def test_base_role_has_zero_kl_and_no_graph(rig, requests_of):
    samples = sampled(rig, requests_of(rig), None)
    for score in token_logits(rig.model, samples, rig.adapters, None, base=True):
        assert not score.logprobs.requires_grad
        assert torch.equal(score.logprobs, score.base_logprobs)
        assert torch.equal(score.kl, torch.zeros_like(score.kl))


def test_temperatures_may_differ_and_single_tokens_work(rig_llama):
    rig = rig_llama
    hot = sampled(rig, [TextRequest("Why?", None, s) for s in range(3)], sampling=TextSampling(1, 1.7))
    greedy = sampled(rig, [TextRequest("Who", None, 0)], sampling=TextSampling(1, 0.0))
    scores = token_logits(rig.model, [*hot, *greedy], rig.adapters, Role.SOLVER)
    for sample, score in zip([*hot, *greedy], scores, strict=True):
        assert score.logprobs.tolist() == pytest.approx(sample.logprobs, abs=2e-5)
    longer = sampled(rig, [TextRequest("Who", None, 5)], sampling=TextSampling(7, 0.5))
    mixed = token_logits(rig.model, [hot[0], *longer], rig.adapters, Role.SOLVER)
    assert mixed[0].logprobs.tolist() == pytest.approx(hot[0].logprobs, abs=2e-5)
    assert mixed[1].logprobs.tolist() == pytest.approx(longer[0].logprobs, abs=2e-5)
    assert token_logits(rig.model, [], rig.adapters, Role.SOLVER) == []


def test_stored_tokens_are_scored_as_they_are(rig_llama):
    """Token ids decide, not the text: the same text from other ids must score differently."""
    rig = rig_llama
    sample = sampled(rig, [TextRequest("Why?", None, 1)])[0]
    swapped = replace(sample, token_ids=(*sample.token_ids[:2], 42, *sample.token_ids[3:]))
    a, b = token_logits(rig.model, [sample, swapped], rig.adapters, Role.SOLVER)
    torch.testing.assert_close(a.logprobs[:2], b.logprobs[:2], rtol=0, atol=2e-5)
    assert (a.logprobs[3:] - b.logprobs[3:]).abs().min() > 1e-3


def test_the_head_never_sees_more_than_128_rows(build_rig):
    rig = build_rig("llama")
    rows = []
    rig.full.lm_head.register_forward_hook(lambda _, inputs, output: rows.append(output.shape[0]))
    requests = [TextRequest("Why?", None, seed) for seed in range(150)]
    samples = sampled(rig, requests, sampling=TextSampling(4))
    assert max(rows) == 128
    loss = shared_loss(rig, samples, [1.0] * 150)
    scored = len(rows)
    gradient(rig, Role.SOLVER, loss)
    assert len(rows) > scored
    assert max(rows) == 128


def test_both_updates_of_a_step_share_the_base_prefix(build_rig, make_picture, monkeypatch):
    rig = build_rig("qwen")
    kept = PrefixCache(rig.adapters.version)
    image = make_picture(1, 112, 112)  # longer than prompt and completion together
    asked = sampled(rig, [TextRequest("Why?", image, s) for s in range(2)], Role.PROPOSER)
    answers = sampled(rig, [TextRequest("Who", image, s) for s in range(2)], Role.SOLVER)
    prefix = len(rig.model.prefixes([image])[0].embeds)
    widths = []
    forward = rig.model.forward
    monkeypatch.setattr(rig.model, "forward", lambda e, *rest: widths.append(e.shape[1]) or forward(e, *rest))
    token_logits(rig.model, asked, rig.adapters, Role.PROPOSER, base=True, prefixes=kept)
    scores = token_logits(rig.model, answers, rig.adapters, Role.SOLVER, base=True, prefixes=kept)
    assert sum(width >= prefix for width in widths) == 3
    fresh = token_logits(rig.model, answers, rig.adapters, Role.SOLVER, base=True)
    torch.testing.assert_close(scores[0].kl, fresh[0].kl)
    again = token_logits(rig.model, answers, rig.adapters, Role.SOLVER, prefixes=kept)
    for scored in (scores, again):  # prefixes with gradients are not kept: each call has its own graph
        first = gradient(rig, Role.SOLVER, sum(s.logprobs.sum() for s in scored))
        assert relative_error(first, gradient(rig, Role.SOLVER, unshared_logprob(rig, answers))) < 1e-4
