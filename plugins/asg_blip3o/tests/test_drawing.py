"""Drawing: seeds, batches, the two stages, the decoder's negative, and the generator's loss."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from asg_blip3o.backbone import Blip3oBackbone
from asg_blip3o.options import Blip3oOptions
from PIL import Image

from asg_core.backbones.interface import ImageRequest, ImageSample, ImageSampling, Role
from asg_core.errors import CapabilityError, ConfigError

Load = Callable[..., Blip3oBackbone]
Wake = Callable[..., None]
Picture = Callable[..., Image.Image]
SMALL = {"flow_steps": 4, "decoder_steps": 3, "height": 32, "width": 32}
PROMPTS = ["two red bands", "two red bands", "a photo of a long thing with many words in it", "two red bands"]
REQUESTS = [ImageRequest(prompt, seed) for seed, prompt in enumerate(PROMPTS)]


def draw(
    backbone: Blip3oBackbone, requests: list[ImageRequest] = REQUESTS, role: Role | None = None
) -> list[ImageSample]:
    return backbone.generate(requests, ImageSampling(), role)


def features(samples: list[ImageSample]) -> torch.Tensor:
    return torch.stack([sample.trajectory["features"] for sample in samples])


def apart(a: ImageSample, b: ImageSample) -> int:
    """Largest difference between two images' bytes."""
    return int(np.abs(np.asarray(a.image).astype(int) - np.asarray(b.image).astype(int)).max())


def test_a_batch_of_prompts_and_candidates_equals_its_singles_in_any_order_and_split(load: Load) -> None:
    backbone = load()
    together = draw(backbone)
    alone = [draw(backbone, [request])[0] for request in REQUESTS]
    turned = draw(backbone, REQUESTS[::-1])[::-1]
    split = draw(load(images_per_batch=3))
    for other in (alone, turned, split):
        assert torch.allclose(features(together), features(other), atol=1e-4)
        assert max(map(apart, together, other)) <= 1


def test_a_seed_fixes_an_image_and_two_seeds_differ_in_both_stages(backbone: Blip3oBackbone) -> None:
    first, again = draw(backbone), draw(backbone)
    assert torch.equal(features(first), features(again))
    assert [s.image.tobytes() for s in first] == [s.image.tobytes() for s in again]
    assert not torch.allclose(features(first)[0], features(first)[1], atol=0.1)
    assert apart(first[0], first[1]) > 10
    torch.manual_seed(5)
    state = torch.get_rng_state()
    draw(backbone)
    assert torch.equal(state, torch.get_rng_state())


def test_the_decoder_noise_is_a_stream_of_its_own(backbone: Blip3oBackbone) -> None:
    sampler = backbone.options.rollout
    with torch.no_grad():
        drawn = backbone.drawing.features(REQUESTS[:1], sampler)
        images = [backbone.drawing.images([ImageRequest("x", seed)], drawn, sampler)[0] for seed in (0, 0, 1)]
    assert images[0].tobytes() == images[1].tobytes() != images[2].tobytes()


def test_profiles_set_steps_size_and_guidance(load: Load) -> None:
    backbone = load(quality={**SMALL, "height": 48, "width": 64, "decoder_steps": 5})
    calls: list[int] = []
    backbone.model.decoder.unet.register_forward_hook(lambda *_: calls.append(1))
    small = backbone.generate(REQUESTS[:1], ImageSampling("rollout"))[0]
    large = backbone.generate(REQUESTS[:1], ImageSampling("quality"))[0]
    assert (small.image.size, large.image.size, len(calls)) == ((32, 32), (64, 48), 3 + 5)


def test_guidance_doubles_the_rows_and_one_switches_it_off(load: Load) -> None:
    rows: dict[float, tuple[int, int]] = {}
    images = {}
    for guidance in (1.0, 3.0):
        backbone = load(rollout={**SMALL, "flow_guidance": guidance, "decoder_guidance": guidance})
        seen: dict[str, int] = {}
        backbone.model.flow.dit.register_forward_hook(lambda m, args, out, s=seen: s.update(flow=len(args[0])))
        backbone.model.decoder.unet.register_forward_hook(lambda m, args, out, s=seen: s.update(unet=len(args[0])))
        images[guidance] = draw(backbone)[0]
        rows[guidance] = (seen["flow"], seen["unet"])
    assert rows == {1.0: (len(REQUESTS) + 1, len(REQUESTS)), 3.0: (2 * len(REQUESTS) + 2, 2 * len(REQUESTS))}
    assert apart(images[1.0], images[3.0]) > 0


def test_candidates_of_a_prompt_share_one_query_pass(backbone: Blip3oBackbone) -> None:
    rows: list[int] = []
    backbone.model.vlm.model.language_model.register_forward_hook(
        lambda module, args, kwargs, out: rows.append(len(kwargs["inputs_embeds"])), with_kwargs=True
    )
    draw(backbone)
    assert rows == [3]  # two distinct prompts and the negative


def test_the_negative_has_a_fixed_seed_and_follows_the_adapters(
    backbone: Blip3oBackbone, wake: Wake, load: Load
) -> None:
    def negative(model: Blip3oBackbone, requests: list[ImageRequest], role: Role | None) -> torch.Tensor:
        with torch.no_grad(), model.adapters.use(role):
            return model.drawing.features(requests, model.options.rollout).negative

    first = negative(backbone, REQUESTS[:1], Role.GENERATOR)
    assert torch.allclose(first, negative(backbone, REQUESTS[2:], Role.GENERATOR), atol=1e-4)
    assert not torch.allclose(first, negative(load(negative_seed=1), REQUESTS[:1], Role.GENERATOR), atol=0.1)
    wake(backbone, Role.GENERATOR)
    assert not torch.allclose(first, negative(backbone, REQUESTS[:1], Role.GENERATOR), atol=1e-3)
    assert torch.equal(first, negative(backbone, REQUESTS[:1], None))


def test_an_impossible_size_is_refused_with_the_multiple(load: Load) -> None:
    with pytest.raises(ConfigError, match="30x32") as error:
        draw(load(rollout={**SMALL, "height": 30}))
    assert "multiples of 4" in error.value.fix


def test_nothing_to_draw_is_nothing(backbone: Blip3oBackbone) -> None:
    assert draw(backbone, []) == []


def test_loss_noise_belongs_to_its_seed_and_a_batch_equals_its_singles(backbone: Blip3oBackbone, wake: Wake) -> None:
    wake(backbone, Role.GENERATOR)
    samples = draw(backbone)
    with torch.no_grad():
        together = backbone.generation_loss(samples, [7, 7, 8, 9])
        alone = [backbone.generation_loss([s], [n]) for s, n in zip(samples, [7, 7, 8, 9], strict=True)]
    assert torch.allclose(together.loss, torch.cat([one.loss for one in alone]), rtol=1e-4)
    assert torch.allclose(together.penalty, torch.cat([one.penalty for one in alone]), rtol=1e-3)
    points = backbone._points([7, 7, 8])
    assert torch.equal(points.noise[0], points.noise[1])
    assert points.sigmas[0] == points.sigmas[1] != points.sigmas[2]


def test_the_penalty_is_zero_for_the_base_and_grows_with_the_adapter(backbone: Blip3oBackbone, wake: Wake) -> None:
    samples = draw(backbone)
    assert backbone.generation_loss(samples, [1, 2, 3, 4]).penalty.tolist() == [0.0] * 4
    base = backbone.generation_loss(samples, [1, 2, 3, 4]).loss
    wake(backbone, Role.GENERATOR)
    woken = backbone.generation_loss(samples, [1, 2, 3, 4])
    assert (woken.penalty > 0).all()
    assert not torch.allclose(base, woken.loss)
    wake(backbone, Role.SOLVER)
    assert torch.equal(woken.loss, backbone.generation_loss(samples, [1, 2, 3, 4]).loss)


def test_losses_on_real_images_need_the_tower(load: Load, picture: Picture) -> None:
    images = [picture(1, 60, 90), picture(2, 90, 60)]
    with pytest.raises(CapabilityError, match="no EVA-CLIP tower"):
        load().real_image_loss(images, PROMPTS[:2], [1, 2])
    backbone = load(real_image_target=True)
    targets = backbone.real_image_targets(images)
    assert targets.shape == (2, *backbone.model.flow.sample_shape)
    loss = backbone.real_image_loss(images, PROMPTS[:2], [1, 2]).loss
    loss.sum().backward()
    assert any(p.grad is not None and bool(p.grad.abs().sum()) for p in backbone.trainable(Role.GENERATOR).values())


def test_defaults_are_the_original_settings_and_a_cheaper_rollout() -> None:
    options = Blip3oOptions()
    quality = options.quality
    assert (quality.flow_steps, quality.flow_guidance, quality.decoder_steps, quality.decoder_guidance) == (
        30,
        3.0,
        50,
        3.0,
    )
    assert (quality.height, quality.width) == (1024, 1024)
    rollout = options.rollout
    assert (rollout.flow_steps, rollout.flow_guidance) == (30, 3.0)
    assert rollout.decoder_steps * rollout.height * rollout.width < 0.25 * quality.decoder_steps * quality.height**2
