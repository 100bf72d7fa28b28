"""Drawing by rectified flow: the second kind of generation loss."""

from __future__ import annotations

import torch

from asg_core.backbones.interface import ImageRequest, ImageSample, ImageSampling, Role
from asg_core.backbones.manifest import LoadRequest
from asg_core.tiny.backbone import FlowOptions, TinyFlowBackbone, load_flow

PROMPTS = ["a red circle", "two small squares and a cross", "a circle", "a blue triangle left of a red cross"]


def _draw(backbone: TinyFlowBackbone) -> list[ImageSample]:
    return backbone.generate([ImageRequest(prompt, seed) for seed, prompt in enumerate(PROMPTS)], ImageSampling())


def _stir(backbone: TinyFlowBackbone) -> None:
    stream = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in backbone.trainable(Role.GENERATOR).values():
            parameter += 0.1 * torch.randn(parameter.shape, generator=stream)


def test_a_batch_equals_its_singles_and_the_seed_decides(tiny_flow: TinyFlowBackbone) -> None:
    together = _draw(tiny_flow)
    for seed, prompt in enumerate(PROMPTS):
        alone = tiny_flow.generate([ImageRequest(prompt, seed)], ImageSampling())[0]
        assert alone.image.tobytes() == together[seed].image.tobytes()
        torch.testing.assert_close(
            alone.trajectory["latent"], together[seed].trajectory["latent"], rtol=1e-4, atol=1e-4
        )
    other = tiny_flow.generate([ImageRequest(PROMPTS[0], 99)], ImageSampling())[0]
    assert other.image.tobytes() != together[0].image.tobytes()
    assert all(sample.token_logprobs is None for sample in together)


def test_more_steps_are_used_for_quality_than_for_rollouts() -> None:
    backbone = load_flow(LoadRequest(options=FlowOptions(rollout_steps=2, quality_steps=6)))
    calls: list[int] = []
    backbone._model.flow_out.register_forward_hook(lambda *_: calls.append(1))
    request = [ImageRequest("a circle", 0)]
    backbone.generate(request, ImageSampling("rollout"))
    assert len(calls) == 2
    backbone.generate(request, ImageSampling("quality"))
    assert len(calls) == 2 + 6


def test_the_loss_depends_on_the_noise_seed_alone_beside_the_sample(tiny_flow: TinyFlowBackbone) -> None:
    samples = _draw(tiny_flow)
    first = tiny_flow.generation_loss(samples, [7, 7, 8, 8]).loss.detach()
    swapped = tiny_flow.generation_loss(samples[::-1], [8, 8, 7, 7]).loss.detach()
    torch.testing.assert_close(first, swapped.flip(0), rtol=1e-4, atol=1e-5)
    other = tiny_flow.generation_loss(samples, [9, 9, 9, 9]).loss.detach()
    assert (first - other).abs().min() > 1e-4


def test_the_loss_moves_the_generator_adapter_and_nothing_else() -> None:
    backbone = load_flow(LoadRequest())
    samples = _draw(backbone)
    assert backbone.generation_loss(samples, [0] * 4).penalty.abs().max() == 0
    _stir(backbone)
    result = backbone.generation_loss(samples, [0] * 4)
    assert (result.penalty > 0).all()
    assert result.token_logprobs is None
    torch.autograd.backward(result.loss.sum() + result.penalty.sum())
    assert all(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in backbone.trainable(Role.GENERATOR).values())
    for role in (Role.PROPOSER, Role.SOLVER):
        assert all(p.grad is None for p in backbone.trainable(role).values())


def test_the_penalty_is_the_squared_difference_of_the_predictions() -> None:
    """Against its definition, with the two predictions taken from the velocity head itself."""
    backbone = load_flow(LoadRequest())
    samples = _draw(backbone)
    seen: list[torch.Tensor] = []
    backbone._model.flow_out.register_forward_hook(lambda module, inputs, output: seen.append(output.detach()))
    _stir(backbone)
    result = backbone.generation_loss(samples, [0, 1, 2, 3])
    policy, base = seen
    torch.testing.assert_close(result.penalty.detach(), (policy - base).square().mean((1, 2)))
