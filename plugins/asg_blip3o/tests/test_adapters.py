"""One set of roles over all modules: a step of one role changes what it should and not a bit of anything else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from asg_blip3o.backbone import Blip3oBackbone
from peft.tuners.lora import LoraLayer
from PIL import Image
from safetensors.torch import load_file, save_file

from asg_core.backbones.interface import ImageRequest, ImageSampling, Role, TextRequest, TextSampling
from asg_core.errors import WeightsError

Load = Callable[..., Blip3oBackbone]
Wake = Callable[..., None]
Picture = Callable[..., Image.Image]
DRAW = [ImageRequest("two red bands", 1), ImageRequest("two red bands", 2)]


def state(backbone: Blip3oBackbone) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in backbone.model.state_dict().items()}


def moved(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    return {name for name, tensor in after.items() if not torch.equal(tensor, before[name])}


@pytest.mark.parametrize("language", [False, True])
def test_a_generator_step_changes_rollout_pixels_and_no_other_tensor(load: Load, language: bool) -> None:
    backbone = load(generator_language_lora=language)
    samples = backbone.generate(DRAW, ImageSampling())
    before = state(backbone)
    optimizer = torch.optim.AdamW(backbone.trainable(Role.GENERATOR).values(), lr=0.05)
    for _ in range(2):  # the first step moves B alone, because B starts at zero
        optimizer.zero_grad()
        backbone.generation_loss(samples, [3, 3]).loss.sum().backward()
        optimizer.step()
    changed = moved(before, state(backbone))
    own = {id(parameter) for parameter in backbone.trainable(Role.GENERATOR).values()}
    assert changed == {name for name, p in backbone.model.named_parameters() if id(p) in own}
    assert any("language_model" in name for name in changed) == language
    again = backbone.generate(DRAW, ImageSampling())
    assert all(a.image.tobytes() != b.image.tobytes() for a, b in zip(samples, again, strict=True))
    base = backbone.generate(DRAW, ImageSampling(), role=None)
    assert all(a.image.tobytes() == b.image.tobytes() for a, b in zip(samples, base, strict=True))


def test_a_text_step_moves_its_role_and_nothing_else_and_changes_no_pixel(load: Load, picture: Picture) -> None:
    backbone = load()
    drawn = backbone.generate(DRAW, ImageSampling())
    requests = [TextRequest("What is on the left?", picture(1), seed) for seed in range(3)]
    samples = backbone.solve(requests, TextSampling(5))
    before = state(backbone)
    optimizer = torch.optim.AdamW(backbone.trainable(Role.SOLVER).values(), lr=0.05)
    for _ in range(2):
        optimizer.zero_grad()
        torch.stack([-s.logprobs.sum() for s in backbone.token_logits(samples, Role.SOLVER)]).sum().backward()
        optimizer.step()
    own = {id(parameter) for parameter in backbone.trainable(Role.SOLVER).values()}
    names = {name for name, p in backbone.model.named_parameters() if id(p) in own}
    assert moved(before, state(backbone)) == names
    again = backbone.generate(DRAW, ImageSampling())
    assert all(a.image.tobytes() == b.image.tobytes() for a, b in zip(drawn, again, strict=True))


def test_a_switch_reaches_every_layer_of_every_module(load: Load) -> None:
    backbone = load(generator_language_lora=True)
    layers = [m for m in backbone.model.modules() if isinstance(m, LoraLayer)]
    flow = [m for m in backbone.model.flow.modules() if isinstance(m, LoraLayer)]
    assert 0 < len(flow) < len(layers)
    for role in (Role.GENERATOR, Role.SOLVER, None, Role.GENERATOR):
        with backbone.adapters.use(role):
            for layer in layers:
                has_role = role is not None and role.value in layer.lora_A
                assert layer.disable_adapters != has_role
                if role is not None and has_role:
                    assert layer.active_adapters == [role.value]
    assert all(layer.disable_adapters for layer in layers)


def test_roles_share_no_parameter_and_are_named_by_module(load: Load) -> None:
    backbone = load(generator_language_lora=True)
    owned = [{id(p) for p in backbone.trainable(role).values()} for role in Role]
    assert sum(map(len, owned)) == len(set().union(*owned))
    assert {name.split(".")[0] for name in backbone.trainable(Role.GENERATOR)} == {"flow", "language"}
    plain = load()
    assert {name.split(".")[0] for name in plain.trainable(Role.GENERATOR)} == {"flow"}
    matrices = {
        name.removesuffix(".lora_A.weight").split(".", 4)[-1]
        for name in plain.trainable(Role.GENERATOR)
        if "lora_A" in name
    }
    assert {"attn2.to_q", "attn2.to_k", "attn2.to_v", "attn2.to_out.0"} <= matrices


@pytest.mark.parametrize("language", [False, True])
def test_saved_roles_come_back_exactly(load: Load, wake: Wake, tmp_path: Path, language: bool) -> None:
    first, second = (load(generator_language_lora=language) for _ in range(2))
    for seed, role in enumerate(Role):
        wake(first, role, seed)
        first.save_role(role, tmp_path / role.value)
        second.load_role(role, tmp_path / role.value)
    assert not moved(state(first), state(second))
    drawn = [b.generate(DRAW, ImageSampling())[0].image.tobytes() for b in (first, second)]
    assert drawn[0] == drawn[1]


def test_a_saved_role_with_a_missing_tensor_is_refused_by_name(backbone: Blip3oBackbone, tmp_path: Path) -> None:
    backbone.save_role(Role.GENERATOR, tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    tensors = load_file(file)
    gone = sorted(tensors)[0]
    del tensors[gone]
    save_file(tensors, file)
    with pytest.raises(WeightsError, match=gone):
        backbone.load_role(Role.GENERATOR, tmp_path)
