"""Sampling: what comes out is what the stock model would give row by row, whatever shares the batch."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from asg_core.backbones.interface import Role, TextRequest, TextSampling
from asg_core.models.decoding import PrefixCache, sample_text

SAMPLED, GREEDY = TextSampling(12, 0.8), TextSampling(12, 0.0)


def test_captured_measures_are_those_of_the_unshared_model(rig, requests_of):
    with rig.adapters.use(Role.SOLVER):
        samples = sample_text(rig.model, requests_of(rig), SAMPLED)
        for sample in samples:
            raw = rig.logits(sample.request, sample.token_ids)
            policy = raw.clone()
            policy[:, list(rig.model.suppressed_token_ids)] = -math.inf
            policy = (policy / 0.8).log_softmax(-1)
            expected = policy.gather(-1, torch.tensor(sample.token_ids)[:, None])[:, 0]
            torch.testing.assert_close(torch.tensor(sample.logprobs), expected, rtol=0, atol=2e-5)
            p = raw.softmax(-1)
            torch.testing.assert_close(torch.tensor(sample.entropies), -(p * p.log()).sum(-1), rtol=0, atol=2e-5)


def test_tokens_are_the_inverse_cumulative_distribution_of_the_samples_own_stream(rig, requests_of):
    samples = sample_text(rig.model, requests_of(rig), SAMPLED)
    for sample in samples:
        stream = torch.Generator().manual_seed(sample.request.seed)
        uniforms = torch.rand(12, dtype=torch.float64, generator=stream).tolist()
        policy = rig.logits(sample.request, sample.token_ids)
        policy[:, list(rig.model.suppressed_token_ids)] = -math.inf
        policy = (policy / 0.8).softmax(-1).double()
        for token, u, p in zip(sample.token_ids, uniforms, policy, strict=False):
            assert p[:token].sum() - 1e-5 <= u <= p[: token + 1].sum() + 1e-5


@pytest.mark.parametrize("sampling", [SAMPLED, GREEDY], ids=["sampled", "greedy"])
def test_a_batch_equals_its_singles_and_order_does_not_matter(rig, requests_of, sampling):
    requests = requests_of(rig)
    together = sample_text(rig.model, requests, sampling)
    order = [7, 2, 9, 0, 4, 1, 8, 3, 6, 5]
    shuffled = sample_text(rig.model, [requests[i] for i in order], sampling)
    for i, request in enumerate(requests):
        alone = sample_text(rig.model, [request], sampling)[0]
        for other in (alone, shuffled[order.index(i)]):
            assert other.request is request
            assert (other.token_ids, other.text, other.finish_reason) == (
                together[i].token_ids,
                together[i].text,
                together[i].finish_reason,
            )
            assert other.logprobs == pytest.approx(together[i].logprobs, abs=2e-5)
            assert other.entropies == pytest.approx(together[i].entropies, abs=2e-5)


def test_requests_of_one_batch_may_be_sampled_each_in_its_own_way(rig, requests_of):
    """Greedy among sampled rows, other temperatures, other limits: each is what it is alone."""
    requests = requests_of(rig)
    ways = [
        TextSampling(12, 0.8),
        TextSampling(3, 0.0),
        TextSampling(1, 1.5),
        TextSampling(7, 0.0),
        TextSampling(5, 0.3),
    ]
    each = [ways[i % len(ways)] for i in range(len(requests))]
    together = sample_text(rig.model, requests, each)
    for request, sampling, sample in zip(requests, each, together, strict=True):
        (alone,) = sample_text(rig.model, [request], sampling)
        assert (sample.token_ids, sample.text, sample.finish_reason) == (
            alone.token_ids,
            alone.text,
            alone.finish_reason,
        )
        assert sample.temperature == alone.temperature == (sampling.temperature or 1.0)
        assert sample.logprobs == pytest.approx(alone.logprobs, abs=2e-5)
        assert sample.entropies == pytest.approx(alone.entropies, abs=2e-5)
    assert {len(s.token_ids) for s in together} >= {1, 3}  # limits are reached
    with pytest.raises(ValueError, match="9 samplings for 10 requests"):
        sample_text(rig.model, requests, each[1:])


def test_seeds_decide_and_nothing_else(rig):
    one, same, other = (TextRequest("Why?", None, seed) for seed in (5, 5, 6))
    a, b, c = sample_text(rig.model, [one, same, other], TextSampling(12))
    assert a.token_ids == b.token_ids != c.token_ids


def test_greedy_equals_generate_of_transformers(rig_llama):
    rig = rig_llama
    texts = ["Why?", "What is to be seen in here?"]
    samples = sample_text(rig.model, [TextRequest(text, None, 0) for text in texts], TextSampling(20, 0.0))
    suppressed = list(rig.model.suppressed_token_ids)
    for text, sample in zip(texts, samples, strict=True):
        row = rig.model.tokenizer(f"{rig.model.header}{text}{rig.model.tail}", return_tensors="pt")["input_ids"]
        output = rig.full.generate(row, max_new_tokens=20, do_sample=False, suppress_tokens=suppressed, pad_token_id=0)
        assert sample.token_ids == tuple(output[0, row.shape[1] :].tolist())
        assert sample.temperature == 1.0


def test_suppressed_tokens_are_never_sampled(rig_llama, monkeypatch):
    rig = rig_llama
    allowed = {3, 5, 256}
    monkeypatch.setattr(rig.model, "suppressed_token_ids", tuple(set(range(262)) - allowed))
    samples = sample_text(rig.model, [TextRequest("Why?", None, seed) for seed in range(50)], TextSampling(8, 3.0))
    assert {token for sample in samples for token in sample.token_ids} == allowed
    assert all(entropy > math.log(3) for sample in samples for entropy in sample.entropies)  # raw logits, all tokens


@pytest.mark.parametrize("draw", [0.0, 1.0])
def test_extreme_draws_give_the_first_and_the_last_possible_token(rig_llama, monkeypatch, draw):
    """The ends of the distribution, where suppressed tokens of probability zero sit, are never hit by rounding."""
    rig = rig_llama
    monkeypatch.setattr(rig.model, "suppressed_token_ids", (0, 1, 2, 259, 260, 261))
    monkeypatch.setattr(torch, "rand", lambda size, **_: torch.full((size,), draw, dtype=torch.float64))
    for text in ("Why?", "Who", "When"):
        sample = sample_text(rig.model, [TextRequest(text, None, 0)], TextSampling(5, 1.3))[0]
        assert set(sample.token_ids) == {3 if draw == 0 else 258}


def test_finish_reason_stop_token_and_limit(rig_llama, monkeypatch):
    rig = rig_llama
    monkeypatch.setattr(rig.model, "stop_token_ids", frozenset(range(0, 256, 3)))
    samples = sample_text(rig.model, [TextRequest("Why?", None, seed) for seed in range(40)], TextSampling(3))
    assert {sample.finish_reason for sample in samples} == {"stop", "length"}
    for sample in samples:
        stops = [token in rig.model.stop_token_ids for token in sample.token_ids]
        assert not any(stops[:-1])
        assert stops[-1] == (sample.finish_reason == "stop")
        assert len(sample.token_ids) == 3 or stops[-1]
        assert len(sample.pieces) == len(sample.logprobs) == len(sample.entropies) == len(sample.token_ids)
        shown = sample.token_ids[:-1] if stops[-1] else sample.token_ids
        assert "".join(sample.pieces) == sample.text == rig.model.decode(shown)
        assert sample.pieces[-1] == "" or not stops[-1]


def test_finished_rows_leave_the_batch_without_changing_the_others(rig_llama, monkeypatch):
    rig = rig_llama
    monkeypatch.setattr(rig.model, "stop_token_ids", frozenset(range(0, 256, 5)))
    widths = []
    forward = rig.model.forward
    monkeypatch.setattr(rig.model, "forward", lambda e, *rest: widths.append(len(e)) or forward(e, *rest))
    requests = [TextRequest("Why?", None, seed) for seed in range(30)]
    together = sample_text(rig.model, requests, TextSampling(90))
    assert max(widths) == 30 > widths[-1]
    assert any(len(sample.token_ids) > 10 for sample in together)
    for request, sample in zip(requests, together, strict=True):
        assert sample_text(rig.model, [request], TextSampling(90))[0].token_ids == sample.token_ids


def test_long_completions_outgrow_the_spare_room(rig_llama):
    rig = rig_llama
    sample = sample_text(rig.model, [TextRequest("Why?", None, 2)], TextSampling(150))[0]
    raw = rig.logits(sample.request, sample.token_ids)
    raw[:, list(rig.model.suppressed_token_ids)] = -math.inf
    expected = raw.log_softmax(-1).gather(-1, torch.tensor(sample.token_ids)[:, None])[:, 0]
    assert len(sample.token_ids) > 70
    torch.testing.assert_close(torch.tensor(sample.logprobs), expected, rtol=0, atol=5e-5)


def test_non_finite_logits_end_the_row_and_leave_the_others_alone(rig_llama, monkeypatch):
    rig = rig_llama
    requests = [TextRequest("Why?", None, 1), TextRequest("Bad", None, 2), TextRequest("Who", None, 3)]
    healthy = sample_text(rig.model, requests, SAMPLED)
    head = rig.model.head
    calls = []

    def poisoned(hidden):
        logits = head(hidden).clone()
        calls.append(1)
        if len(calls) == 3:
            logits[1, 7] = math.inf
        return logits

    monkeypatch.setattr(rig.model, "head", poisoned)
    good, bad, also_good = sample_text(rig.model, requests, SAMPLED)
    assert bad.finish_reason == "length"
    assert bad.token_ids[:2] == healthy[1].token_ids[:2]
    assert len(bad.token_ids) == 3
    assert [math.isnan(x) for x in bad.logprobs] == [math.isnan(x) for x in bad.entropies] == [False, False, True]
    assert (good.token_ids, also_good.token_ids) == (healthy[0].token_ids, healthy[2].token_ids)
    assert good.logprobs == pytest.approx(healthy[0].logprobs, abs=2e-5)


def test_names_of_special_tokens_in_a_prompt_have_no_power(rig_llama):
    ids = rig_llama.model.tokenizer("a<end>b", add_special_tokens=False)["input_ids"]
    assert 256 in ids
    assert len(rig_llama.model.prompt("a<end>b").embeds) == len("a<end>b") + 1


def test_equal_tokens_of_different_images_do_not_share(rig_qwen, make_picture):
    rig = rig_qwen
    one, other = make_picture(1), make_picture(2)
    requests = [TextRequest("Why?", image, 9) for image in (one, other, one)]
    samples = sample_text(rig.model, requests, TextSampling(12))
    lengths = {len(segment.embeds) for segment in rig.model.prefixes([one, other])}
    assert len(lengths) == 1  # same header, same number of patch tokens
    assert samples[0].logprobs == pytest.approx(samples[2].logprobs, abs=2e-5)
    assert samples[0].logprobs[0] != pytest.approx(samples[1].logprobs[0], abs=1e-3)


def test_cost_of_a_call_vision_once_prefix_once_one_pass_per_token(rig_qwen, make_picture, monkeypatch):
    rig = rig_qwen
    one, other = make_picture(3), make_picture(4, 84, 56)
    patches, shapes = [], []
    rig.full.model.visual.blocks[0].register_forward_hook(lambda *_: patches.append(1))
    forward = rig.model.forward
    monkeypatch.setattr(rig.model, "forward", lambda e, *rest: shapes.append(tuple(e.shape[:2])) or forward(e, *rest))
    requests = [TextRequest(p, image, s) for image in (one, other) for p in ("Why?", "Who") for s in range(7)]
    samples = sample_text(rig.model, requests, TextSampling(6))
    longest = max(len(sample.token_ids) for sample in samples)
    assert len(patches) == 1
    assert [rows for rows, _ in shapes[:3]] == [2, 4, 28]
    assert len(shapes) == longest + 1  # prefix, prompts, then one pass per token but the last
    sample_text(rig.model, requests, TextSampling(6))
    assert len(patches) == 1


def test_kept_prefixes_are_used_again_until_weights_or_images_change(build_rig, make_picture, monkeypatch):
    rig = build_rig("qwen")
    kept = PrefixCache(rig.adapters.version)
    rows = []
    forward = rig.model.forward
    monkeypatch.setattr(rig.model, "forward", lambda e, *rest: rows.append(e.shape[1]) or forward(e, *rest))
    one, other = make_picture(3), make_picture(4, 84, 56)
    prefix = max(len(segment.embeds) for segment in rig.model.prefixes([one, other]))
    requests = [TextRequest("Why?", one, 1), TextRequest("Why?", other, 2)]

    def run(asked, role):
        rows.clear()
        with rig.adapters.use(role):
            samples = sample_text(rig.model, asked, SAMPLED, prefixes=kept)
            fresh = sample_text(rig.model, asked, SAMPLED)
        assert [s.token_ids for s in samples] == [s.token_ids for s in fresh]
        assert samples[0].logprobs == pytest.approx(fresh[0].logprobs, abs=2e-5)
        return sum(width >= prefix for width in rows) - 1  # the fresh call prefills once

    assert run(requests, Role.SOLVER) == 1
    assert run(requests, Role.SOLVER) == 0
    assert run(requests[1:], Role.SOLVER) == 0
    assert run(requests, Role.PROPOSER) == 1
    assert run(requests, None) == 1
    assert run(requests, Role.SOLVER) == 0
    with torch.no_grad():
        next(iter(rig.adapters.parameters(Role.SOLVER).values())).mul_(2)
    assert run(requests, Role.SOLVER) == 1
    assert run(requests, Role.PROPOSER) == 0
    assert len(kept._entries) == 3
    del requests, one
    assert kept._entries == []


def test_no_requests_no_samples(rig_llama):
    assert sample_text(rig_llama.model, [], SAMPLED) == []


def test_one_host_transfer_per_pass(rig_llama, monkeypatch):
    transfers = []
    tolist = torch.Tensor.tolist
    monkeypatch.setattr(torch.Tensor, "tolist", lambda t: transfers.append(1) or tolist(t))
    for name in ("item", "__bool__", "__int__", "__float__"):
        plain = getattr(torch.Tensor, name)
        monkeypatch.setattr(torch.Tensor, name, lambda t, f=plain: transfers.append(1) or f(t))
    requests = [TextRequest("Why?", None, seed) for seed in range(6)]
    samples = sample_text(rig_llama.model, requests, replace(SAMPLED, max_new_tokens=9))
    passes = max(len(sample.token_ids) for sample in samples)
    assert len(transfers) <= 2 * passes + 2
