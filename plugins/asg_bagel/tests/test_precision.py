"""bfloat16 base, float32 where it matters: adapters, log-probs, latents, losses."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from asg_bagel.backbone import BagelBackbone
from asg_core.backbones.interface import ImageRequest, ImageSampling, Role, TextRequest, TextSampling
from asg_core.backbones.loading import load_backbone

from bagel_fixtures import OPTIONS, picture, stir


@pytest.fixture
def half(golden: Path) -> BagelBackbone:
    loaded = load_backbone(
        "bagel",
        weights=golden / "checkpoint",
        device="cpu",
        dtype="bfloat16",
        options=OPTIONS,
        gradient_checkpointing=True,
    )
    assert isinstance(loaded, BagelBackbone)
    for role in Role:
        stir(loaded, role)
    return loaded


def test_a_bfloat16_base_keeps_float32_adapters_scores_and_losses(half: BagelBackbone) -> None:
    roles = {id(p) for role in Role for p in half.trainable(role).values()}
    for name, parameter in half.model.named_parameters():
        assert parameter.dtype == (torch.float32 if id(parameter) in roles else torch.bfloat16), name
    samples = half.solve([TextRequest("the cat", picture(1), 1)], TextSampling(6))
    (scores,) = half.token_logits(samples, Role.SOLVER, base=True)
    assert scores.logprobs.dtype == torch.float32
    torch.testing.assert_close(scores.logprobs.detach(), torch.tensor(samples[0].logprobs), atol=0.05, rtol=0)
    drawn = half.generate([ImageRequest("a cat", 1)], ImageSampling())
    assert drawn[0].trajectory["latent"].dtype == torch.float32
    loss = half.generation_loss(drawn, [1])
    assert loss.loss.dtype == loss.penalty.dtype == torch.float32
    (scores.logprobs.sum() + loss.loss.sum()).backward()
    for role in (Role.SOLVER, Role.GENERATOR):
        for name, parameter in half.trainable(role).items():
            assert parameter.grad is not None, name
            assert parameter.grad.dtype == torch.float32
            assert bool(parameter.grad.isfinite().all())


def test_half_precision_draws_nearly_what_full_precision_draws(half: BagelBackbone, backbone: BagelBackbone) -> None:
    request = [ImageRequest("a cat", 1)]
    coarse, fine = (b.generate(request, ImageSampling(), None)[0].trajectory["latent"] for b in (half, backbone))
    assert float((coarse - fine).norm() / fine.norm()) < 0.05
