"""Drawing as image tokens: exact replay, independence of the batch, gradients where they belong."""

from __future__ import annotations

import random

import pytest
import torch

from asg_core.backbones.interface import ImageRequest, ImageSample, ImageSampling, Role
from asg_core.backbones.manifest import LoadRequest
from asg_core.tiny.backbone import TinyBackbone, load
from asg_core.tiny.detector import read_codes

PROMPTS = ["a red circle", "two small squares and a cross", "a blue triangle left of a red cross", "a circle"]


def _draw(backbone: TinyBackbone, temperature: float = 1.0, role: Role | None = Role.GENERATOR) -> list[ImageSample]:
    requests = [ImageRequest(prompt, seed) for seed, prompt in enumerate(PROMPTS * 2)]
    return backbone.generate(requests, ImageSampling(temperature=temperature), role=role)


def _stir(backbone: TinyBackbone, role: Role, seed: int = 0, scale: float = 0.1) -> None:
    """Give an adapter weights that change what the model does."""
    stream = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in backbone.trainable(role).values():
            parameter += scale * torch.randn(parameter.shape, generator=stream)


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_replayed_log_probs_are_those_of_sampling(temperature: float) -> None:
    backbone = load(LoadRequest())
    _stir(backbone, Role.GENERATOR)
    samples = _draw(backbone, temperature)
    replayed = backbone.generation_loss(samples, [0] * len(samples)).token_logprobs
    assert replayed is not None
    stored = torch.stack([s.token_logprobs for s in samples if s.token_logprobs is not None])
    torch.testing.assert_close(replayed.detach(), stored, rtol=1e-4, atol=1e-4)


def test_a_batch_equals_its_singles_in_any_order(tiny: TinyBackbone) -> None:
    requests = [ImageRequest(prompt, seed) for seed, prompt in enumerate(PROMPTS)]
    together = tiny.generate(requests, ImageSampling())
    alone = [tiny.generate([request], ImageSampling())[0] for request in reversed(requests)][::-1]
    for a, b in zip(together, alone, strict=True):
        assert a.trajectory["codes"].tolist() == b.trajectory["codes"].tolist()
        assert a.image.tobytes() == b.image.tobytes()


def test_the_seed_decides_the_picture(tiny: TinyBackbone) -> None:
    first, second, again = tiny.generate([ImageRequest("a circle", seed) for seed in (1, 2, 1)], ImageSampling())
    assert first.image.tobytes() == again.image.tobytes() != second.image.tobytes()


def test_the_picture_shows_the_codes(tiny: TinyBackbone) -> None:
    for sample in _draw(tiny):
        assert read_codes(sample.image) == sample.trajectory["codes"].tolist()


def test_sampled_codes_follow_the_log_probs(tiny: TinyBackbone) -> None:
    """The share of the most frequent first code is what its stored log-prob says (400 draws, 5 standard errors)."""
    samples = tiny.generate([ImageRequest("a circle", seed) for seed in range(400)], ImageSampling())
    logprobs = {
        int(s.trajectory["codes"][0]): float(s.token_logprobs[0].exp()) for s in samples if s.token_logprobs is not None
    }
    counts = torch.bincount(torch.stack([s.trajectory["codes"][0] for s in samples]), minlength=64)
    code = int(counts.argmax())
    p = logprobs[code]
    assert abs(int(counts[code]) / 400 - p) < 5 * (p * (1 - p) / 400) ** 0.5


def test_the_loss_moves_the_generator_adapter_and_nothing_else() -> None:
    backbone = load(LoadRequest())
    _stir(backbone, Role.GENERATOR)
    samples = _draw(backbone)
    result = backbone.generation_loss(samples, [0] * len(samples))
    torch.autograd.backward(result.loss.sum() + result.penalty.sum())
    assert all(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in backbone.trainable(Role.GENERATOR).values())
    for role in (Role.PROPOSER, Role.SOLVER):
        assert all(p.grad is None for p in backbone.trainable(role).values())
    assert all(p.grad is None for name, p in backbone._model.named_parameters() if "lora_" not in name)


def test_the_penalty_is_zero_for_a_new_adapter_and_the_exact_kl_after() -> None:
    backbone = load(LoadRequest())
    samples = _draw(backbone)
    assert backbone.generation_loss(samples, [0] * len(samples)).penalty.abs().max() == 0
    _stir(backbone, Role.GENERATOR)
    samples = _draw(backbone)
    exact = backbone.generation_loss(samples, [0] * len(samples)).penalty.detach()
    assert (exact > 0).all()
    # The mean log-ratio of codes sampled from the policy estimates the same KL (100 pictures of one prompt).
    many = backbone.generate([ImageRequest("a circle", seed) for seed in range(100)], ImageSampling())
    result = backbone.generation_loss(many, [0] * len(many))
    own = torch.stack([s.token_logprobs for s in many if s.token_logprobs is not None]).mean(-1)
    with torch.no_grad():
        for parameter in backbone.trainable(Role.GENERATOR).values():
            parameter.zero_()
    base = backbone.generation_loss(many, [0] * len(many)).token_logprobs
    assert base is not None
    ratios = own - base.detach().mean(-1)
    assert abs(float(ratios.mean() - result.penalty.detach().mean())) < 5 * float(ratios.std()) / 100**0.5


def test_a_shuffled_batch_of_mixed_temperatures_replays(tiny: TinyBackbone) -> None:
    samples = [*_draw(tiny, 1.0), *_draw(tiny, 0.7)]
    random.Random(0).shuffle(samples)
    replayed = tiny.generation_loss(samples, [0] * len(samples)).token_logprobs
    assert replayed is not None
    stored = torch.stack([s.token_logprobs for s in samples if s.token_logprobs is not None])
    torch.testing.assert_close(replayed.detach(), stored, rtol=1e-4, atol=1e-4)
