"""Gradients of scores know nothing of the sharing, and recomputing keeps less."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from asg_core.backbones.interface import Role, TextRequest, TextSampling
from asg_core.models.decoding import cache_layers, prefix_tree, sample_text, token_logits

from .unshared import (
    ADVANTAGES,
    SAMPLING,
    gradient,
    relative_error,
    sampled,
    shared_loss,
    unshared_loss,
)


def one_prompt_an_image(images):
    """The Proposer's case: image and prompt are one pass, five samples share it."""
    return [TextRequest("Why?", images[n % 2], n) for n in range(10)]


def many_answers_a_prompt(images):
    """Three levels: image, prompt, samples."""
    return [TextRequest(("Why?", "What is to be seen?")[n % 2], images[0], n) for n in range(10)]


@pytest.mark.parametrize("kind", ["llama", "qwen"])
@pytest.mark.parametrize("shape", [None, one_prompt_an_image, many_answers_a_prompt])
def test_shared_prefix_gradient_equals_the_unshared_one_and_a_detached_prefix_does_not(
    kind, shape, build_rig, requests_of, make_picture, monkeypatch
):
    rig = build_rig(kind, torch.float64)
    images = [make_picture(1), make_picture(2, 84, 56)] if rig.sees else [None, None]
    samples = sampled(rig, shape(images) if shape else requests_of(rig))
    expected = gradient(rig, Role.SOLVER, unshared_loss(rig, samples, ADVANTAGES))
    shared = gradient(rig, Role.SOLVER, shared_loss(rig, samples, ADVANTAGES))
    assert relative_error(shared, expected) < 1e-6  # the stock models' norms round to float32

    def detached(whole, rows, *, growing=False):
        forked = cache_layers.branch(whole, rows, growing=growing)
        for layer in forked.layers:
            if layer.past is not None:
                layer.past = tuple(states.detach() for states in layer.past)
        return forked

    monkeypatch.setattr(prefix_tree, "branch", detached)
    assert relative_error(gradient(rig, Role.SOLVER, shared_loss(rig, samples, ADVANTAGES)), expected) > 1e-2


def test_gradients_reach_the_scored_role_alone(rig, requests_of):
    samples = sampled(rig, requests_of(rig))
    loss = shared_loss(rig, samples, ADVANTAGES)
    loss.backward()
    for role in Role:
        for weight in rig.adapters.parameters(role).values():
            if role is Role.SOLVER:
                assert weight.grad.abs().max() > 0
                weight.grad = None
            assert weight.grad is None
    own = {id(weight) for role in Role for weight in rig.adapters.parameters(role).values()}
    assert all(p.grad is None for p in rig.full.parameters() if id(p) not in own)


@pytest.mark.parametrize("kind", ["llama", "qwen"])
def test_recomputed_layers_give_the_same_gradient_and_keep_less(kind, build_rig, requests_of):
    rig = build_rig(kind, torch.float64)
    samples = sampled(rig, requests_of(rig))
    kept: list[int] = []

    def count(tensor):
        kept[-1] += tensor.numel()
        return tensor

    def run(**options):
        kept.append(0)
        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            loss = shared_loss(rig, samples, ADVANTAGES, **options)
        with rig.adapters.use(Role.PROPOSER):  # what happens to be active in the backward pass must not matter
            return gradient(rig, Role.SOLVER, loss)

    plain, recomputed = run(), run(checkpoint_layers=rig.layers)
    assert relative_error(recomputed, plain) < 1e-12
    assert kept[1] < 0.3 * kept[0]
    assert all("forward" not in vars(layer) for layer in rig.layers)


def test_an_adapted_head_is_recomputed_under_its_own_role(build_rig):
    from asg_core.backbones.manifest import LoraSettings
    from asg_core.models.lora import RoleAdapters

    rig = build_rig("llama", torch.float64)
    wrapped = torch.nn.Sequential(rig.full.lm_head)
    adapters = RoleAdapters({"head": wrapped}, {r: {"head": ["0"]} for r in Role}, LoraSettings(rank=2))
    wrapped.double()
    rig.model.output = wrapped
    with torch.no_grad():
        for role in Role:
            for weight in adapters.parameters(role).values():
                weight.normal_(std=0.3, generator=torch.Generator().manual_seed(len(role)))
    with adapters.use(Role.SOLVER):
        samples = sample_text(rig.model, [TextRequest("Why?", None, s) for s in range(3)], SAMPLING)
    weights = list(adapters.parameters(Role.SOLVER).values())
    scores = token_logits(rig.model, samples, adapters, Role.SOLVER, base=True)
    for score, plain in zip(scores, token_logits(rig.model, samples, adapters, None), strict=True):
        assert torch.equal(score.base_logprobs, plain.logprobs)
        assert (score.kl > 1e-4).all()
    got = torch.autograd.grad(sum(s.logprobs.sum() for s in scores), weights)
    with adapters.use(Role.SOLVER):
        expected = 0.0
        for s in samples:
            row = rig.model.tokenizer(f"{rig.model.header}Why?{rig.model.tail}")["input_ids"] + list(s.token_ids)
            hidden = rig.full.model(torch.tensor([row])).last_hidden_state[0, -len(s.token_ids) - 1 : -1]
            raw = wrapped(hidden).index_fill(-1, torch.tensor(rig.model.suppressed_token_ids), -math.inf) / 0.8
            expected = expected + raw.log_softmax(-1).gather(-1, torch.tensor(s.token_ids)[:, None]).sum()
        for a, b in zip(got, torch.autograd.grad(expected, weights), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_grad_mode_is_respected(rig, requests_of):
    samples = sampled(rig, requests_of(rig))
    assert token_logits(rig.model, samples, rig.adapters, Role.SOLVER)[0].logprobs.requires_grad
    with torch.no_grad():
        scores = token_logits(rig.model, samples, rig.adapters, Role.SOLVER, base=True)
    assert not any(s.logprobs.requires_grad or s.kl.requires_grad for s in scores)


def test_sharing_keeps_fewer_activations_than_an_unshared_batch(build_rig, make_picture):
    rig = build_rig("qwen")
    image = make_picture(1, 112, 112)
    samples = sampled(rig, [TextRequest("What is it?", image, s) for s in range(14)], sampling=TextSampling(5))
    alone = [replace(s, request=replace(s.request, image=image.copy())) for s in samples]

    def kept(batch):
        seen = {}

        def pack(tensor):
            seen[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            scores = token_logits(rig.model, batch, rig.adapters, Role.SOLVER)
        return sum(seen.values()), scores

    (shared, scores), (unshared, expected) = kept(samples), kept(alone)
    torch.testing.assert_close(scores[3].logprobs, expected[3].logprobs, rtol=0, atol=2e-5)
    assert shared <= 0.65 * unshared


def test_a_layer_that_is_run_again_keeps_nothing_for_the_next(rig, monkeypatch):
    """Keys and values in a cache hold what they were computed from: a layer's norms, until the backward pass ends."""
    made = []
    start = cache_layers.BranchLayer.__init__

    def spied(layer, *args):
        start(layer, *args)
        made.append(layer)

    samples = sampled(rig, [TextRequest("what is it ?", None, seed) for seed in range(2)])
    monkeypatch.setattr(cache_layers.BranchLayer, "__init__", spied)
    scores = token_logits(rig.model, samples, rig.adapters, Role.SOLVER, checkpoint_layers=rig.layers)
    before = [(layer.keys, layer.values) for layer in made]
    sum(score.logprobs.sum() for score in scores).backward()
    assert len(before) >= 2 * len(rig.layers)
    assert all(layer.keys is k and layer.values is v for layer, (k, v) in zip(made, before, strict=True))
