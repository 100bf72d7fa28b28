"""Adapters: gradients reach each of them and nothing else; switching, isolation, saving."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from asg_vargpt.backbone import VargptBackbone
from PIL import Image

from asg_core.backbones.interface import ImageRequest, ImageSampling, Role, TextRequest, TextSampling
from asg_core.errors import WeightsError

Load = Callable[..., VargptBackbone]
Wake = Callable[..., None]
Picture = Callable[..., Image.Image]


def _base_hash(backbone: VargptBackbone) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(backbone.model.state_dict().items()):
        if "lora_" not in name:
            digest.update(name.encode() + tensor.detach().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _text_loss(backbone: VargptBackbone, role: Role, image: Image.Image) -> torch.Tensor:
    samples = backbone.ask([TextRequest("What is it?", image, seed) for seed in range(2)], TextSampling(8), role)
    scores = backbone.token_logits(samples, role, base=True)
    return sum((-score.logprobs.sum() + score.kl.sum() for score in scores), torch.zeros(()))  # type: ignore[union-attr]


def _image_loss(backbone: VargptBackbone) -> torch.Tensor:
    samples = backbone.generate([ImageRequest("a kite", seed) for seed in range(2)], ImageSampling())
    scored = backbone.generation_loss(samples, [0, 0])
    return (scored.loss + scored.penalty).sum()


def _loss(backbone: VargptBackbone, role: Role, image: Image.Image) -> torch.Tensor:
    return _image_loss(backbone) if role is Role.GENERATOR else _text_loss(backbone, role, image)


@pytest.mark.parametrize("role", list(Role))
@pytest.mark.parametrize("checkpointing", [False, True])
def test_every_adapter_of_the_role_and_nothing_else_gets_gradient(
    load: Load, wake: Wake, picture: Picture, role: Role, checkpointing: bool
) -> None:
    backbone = load(generator_adapter="language_model_and_decoder", checkpointing=checkpointing)
    wake(backbone, role)
    _loss(backbone, role, picture(0)).backward()
    for name, parameter in backbone.trainable(role).items():
        assert parameter.grad is not None, name
        assert float(parameter.grad.abs().max()) > 0, name
    own = {id(parameter) for parameter in backbone.trainable(role).values()}
    others = [name for name, p in backbone.model.named_parameters() if id(p) not in own and p.grad is not None]
    assert others == []


def test_the_decoder_option_reaches_every_projection_of_every_block(load: Load) -> None:
    names = set(load(generator_adapter="language_model_and_decoder").trainable(Role.GENERATOR))
    for block in range(2):
        for layer in ("sa.mat_qkv", "sa.proj", "ca.mat_q", "ca.mat_kv", "ca.proj", "ffn.fc1", "ffn.fc2"):
            assert f"decoder.blocks.{block}.{layer}.lora_A.weight" in names
    assert not any(name.startswith("decoder") for name in load().trainable(Role.GENERATOR))


def test_recomputing_activations_gives_the_same_gradients(load: Load, wake: Wake, picture: Picture) -> None:
    gradients = []
    for checkpointing in (False, True):
        backbone = load(checkpointing=checkpointing)
        for role in (Role.GENERATOR, Role.SOLVER):
            wake(backbone, role)
            _loss(backbone, role, picture(0)).backward()
        gradients.append([p.grad for role in (Role.GENERATOR, Role.SOLVER) for p in backbone.trainable(role).values()])
    for plain, recomputed in zip(*gradients, strict=True):
        assert torch.allclose(plain, recomputed, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("role", list(Role))
def test_a_step_on_one_role_leaves_the_base_and_the_others_bit_identical(
    load: Load, wake: Wake, picture: Picture, role: Role
) -> None:
    backbone = load()
    for seed, other in enumerate(Role):
        wake(backbone, other, seed)
    base = _base_hash(backbone)
    before = {other: {k: v.detach().clone() for k, v in backbone.trainable(other).items()} for other in Role}
    optimizer = torch.optim.AdamW(backbone.trainable(role).values(), lr=1e-2)
    _loss(backbone, role, picture(0)).backward()
    optimizer.step()
    assert _base_hash(backbone) == base
    for other in Role:
        moved = [k for k, v in backbone.trainable(other).items() if not torch.equal(v, before[other][k])]
        assert bool(moved) == (other is role)


def test_switching_back_restores_outputs_bit_for_bit(awake: VargptBackbone, load: Load, picture: Picture) -> None:
    request = [TextRequest("What is it?", picture(0), 0)]

    def read(role: Role | None, backbone: VargptBackbone = awake) -> tuple[float, ...]:
        return backbone.solve(request, TextSampling(6), role=role)[0].logprobs

    first = read(Role.SOLVER)
    assert read(Role.PROPOSER) != first
    awake.generate([ImageRequest("a kite", 0)], ImageSampling())
    assert read(Role.SOLVER) == first
    assert read(None) == read(None, load()) == read(Role.SOLVER, load())


def test_penalty_is_zero_for_a_fresh_adapter_and_positive_for_a_trained_one(
    backbone: VargptBackbone, awake: VargptBackbone
) -> None:
    for subject, positive in ((backbone, False), (awake, True)):
        samples = subject.generate([ImageRequest("a kite", 0)], ImageSampling())
        penalty = subject.generation_loss(samples, [0]).penalty.item()
        assert (penalty > 1e-4) if positive else (penalty == 0)


def test_adapters_are_float32_over_a_bfloat16_base(load: Load, wake: Wake) -> None:
    backbone = load(dtype="bfloat16")
    wake(backbone, Role.GENERATOR)
    assert {p.dtype for role in Role for p in backbone.trainable(role).values()} == {torch.float32}
    samples = backbone.generate([ImageRequest("a kite", 0), ImageRequest("a big boat", 1)], ImageSampling())
    scored = backbone.generation_loss(samples, [0, 0])
    assert scored.loss.dtype == torch.float32
    for row, sample in zip(scored.token_logprobs, samples, strict=True):  # type: ignore[arg-type]
        assert float((row - sample.token_logprobs).abs().mean()) < 0.02


@pytest.mark.parametrize("where", ["language_model", "language_model_and_decoder"])
def test_saved_adapters_come_back_exactly(load: Load, wake: Wake, tmp_path: Path, where: str) -> None:
    first, second = load(generator_adapter=where), load(generator_adapter=where)
    for seed, role in enumerate(Role):
        wake(first, role, seed)
        first.save_role(role, tmp_path / role.value)
        second.load_role(role, tmp_path / role.value)
        for name, parameter in first.trainable(role).items():
            assert torch.equal(parameter, second.trainable(role)[name]), name


def test_an_adapter_for_another_place_is_refused(load: Load, tmp_path: Path) -> None:
    load(generator_adapter="language_model_and_decoder").save_role(Role.GENERATOR, tmp_path)
    with pytest.raises(WeightsError):
        load().load_role(Role.GENERATOR, tmp_path)
