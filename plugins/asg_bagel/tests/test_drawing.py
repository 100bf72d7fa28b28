"""The Generator: candidates belong to their seeds, guidance costs one batch per step, and the loss is what it says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from asg_bagel.backbone import BagelBackbone
from asg_bagel.kv_cache import Context, read
from asg_bagel.modeling_flow import noisy, training_time
from asg_bagel.modeling_vae import decode_latent, to_images, to_map
from asg_core.backbones.interface import ImageRequest, ImageSample, ImageSampling, Role
from asg_core.errors import CapabilityError, ConfigError

from bagel_fixtures import OPTIONS, picture, stir

REQUESTS = [
    ImageRequest("the red cat on the mat", 1),
    ImageRequest("the red cat on the mat", 2),
    ImageRequest("a cat", 1),
]
ROLLOUT = ImageSampling("rollout")


def latents(samples: list[ImageSample]) -> torch.Tensor:
    return torch.stack([sample.trajectory["latent"] for sample in samples])


def test_a_batch_equals_its_singles_in_any_order(backbone: BagelBackbone) -> None:
    together = latents(backbone.generate(REQUESTS, ROLLOUT))
    singles = torch.cat([latents(backbone.generate([request], ROLLOUT)) for request in REQUESTS])
    reverse = latents(backbone.generate(REQUESTS[::-1], ROLLOUT)).flip(0)
    torch.testing.assert_close(together, singles, atol=2e-5, rtol=0)
    torch.testing.assert_close(together, reverse, atol=2e-5, rtol=0)
    assert float((together[0] - together[1]).abs().max()) > 0.1


def test_small_draw_batches_draw_the_same(load: Callable[..., BagelBackbone]) -> None:
    one = latents(load(draw_batch=1).generate(REQUESTS, ROLLOUT))
    all_ = latents(load().generate(REQUESTS, ROLLOUT))
    torch.testing.assert_close(one, all_, atol=2e-5, rtol=0)


def test_the_image_is_the_decoded_trajectory(backbone: BagelBackbone) -> None:
    (sample,) = backbone.generate(REQUESTS[:1], ROLLOUT)
    rows, columns = sample.trajectory["grid"].tolist()
    stride = backbone.model.config.image_stride
    assert sample.image.size == (columns * stride, rows * stride)
    latent = to_map(sample.trajectory["latent"][None], rows, backbone.model.config.latent_patch)
    (decoded,) = to_images(decode_latent(backbone.model.vae, latent))
    assert decoded.tobytes() == sample.image.tobytes()


def test_profiles_have_their_own_sizes(load: Callable[..., BagelBackbone]) -> None:
    backbone = load(quality={"num_timesteps": 2, "height": 16, "width": 32})
    largest = backbone.model.config.max_image_size
    assert backbone.generate(REQUESTS[:1], ImageSampling("quality"))[0].image.size == (32, 16)
    assert backbone.generate(REQUESTS[:1], ROLLOUT)[0].image.size == (largest * 5 // 8, largest * 5 // 8)


@pytest.mark.parametrize("size", [{"height": 18}, {"width": 36}, {"height": 2}])
def test_a_size_that_does_not_fit_is_refused_when_loading(
    load: Callable[..., BagelBackbone], size: dict[str, int]
) -> None:
    with pytest.raises(ConfigError, match="cannot be drawn"):
        load(rollout={**OPTIONS["rollout"], **size})


def test_both_guidance_branches_of_all_candidates_are_one_forward_per_step(load: Callable[..., BagelBackbone]) -> None:
    backbone = load(rollout={"num_timesteps": 11})
    rows: list[int] = []
    backbone.generate(REQUESTS[:1], ROLLOUT)
    decoder = backbone.model.language_model.model
    prompts = len({request.prompt for request in REQUESTS})
    decoder.layers[0].register_forward_pre_hook(lambda _module, inputs: rows.append(len(inputs[0])))
    backbone.generate(REQUESTS, ROLLOUT)
    assert rows[:prompts] == [1] * prompts
    assert len(rows) - prompts == 10
    assert sorted(set(rows[prompts:])) == [len(REQUESTS), 2 * len(REQUESTS)]


def test_text_adapters_never_act_while_drawing(backbone: BagelBackbone) -> None:
    base = latents(backbone.generate(REQUESTS[:1], ROLLOUT, None))
    for role in (Role.PROPOSER, Role.SOLVER):
        assert torch.equal(latents(backbone.generate(REQUESTS[:1], ROLLOUT, role)), base)
    with backbone.adapters.use(Role.SOLVER):
        assert torch.equal(latents(backbone.generate(REQUESTS[:1], ROLLOUT, None)), base)
    assert not torch.equal(latents(backbone.generate(REQUESTS[:1], ROLLOUT)), base)


def test_equal_noise_seeds_share_time_and_noise(backbone: BagelBackbone) -> None:
    (sample,) = backbone.generate(REQUESTS[:1], ROLLOUT)
    loss = backbone.generation_loss([sample, sample, sample], [5, 5, 6]).loss.detach()
    assert float(loss[0]) == pytest.approx(float(loss[1]), abs=1e-5)
    assert abs(float(loss[0] - loss[2])) > 1e-4


def test_the_loss_of_a_batch_equals_its_singles_across_sizes(load: Callable[..., BagelBackbone]) -> None:
    backbone = load(quality={"num_timesteps": 3, "height": 8, "width": 24})
    stir(backbone, Role.GENERATOR)
    samples = [*backbone.generate(REQUESTS, ROLLOUT), *backbone.generate(REQUESTS[:1], ImageSampling("quality"))]
    seeds = [3, 3, 4, 5]
    together = backbone.generation_loss(samples, seeds)
    for i, (sample, seed) in enumerate(zip(samples, seeds, strict=True)):
        single = backbone.generation_loss([sample], [seed])
        torch.testing.assert_close(together.loss[i], single.loss[0], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(together.penalty[i], single.penalty[0], atol=1e-5, rtol=1e-5)


def test_the_loss_is_flow_matching_on_the_stored_latent_with_guidance_off(load: Callable[..., BagelBackbone]) -> None:
    backbone = load(loss_shift=2.0)
    (sample,) = backbone.generate(REQUESTS[:1], ROLLOUT)
    clean = sample.trajectory["latent"][None]
    stream = torch.Generator().manual_seed(9)
    time = training_time(torch.randn((), generator=stream)[None], 2.0)
    noise = torch.randn(clean.shape[1:], generator=stream)[None]
    model, builder = backbone.model, backbone.builder
    rows = int(sample.trajectory["grid"][0])
    with torch.no_grad():
        decoder = model.language_model.model
        _, context = read(decoder, Context(), builder.text(REQUESTS[0].prompt))
        embeds = builder.latents(noisy(clean, noise, time), time, rows)
        cache_free = torch.cat([builder.text(REQUESTS[0].prompt).embeds[None], embeds], dim=1)
        past = context.length
        order = torch.cat([torch.arange(past + 2), torch.arange(past + 2, cache_free.shape[1])])
        positions = torch.cat([torch.arange(past), torch.full((embeds.shape[1],), context.counter)])[None]
        mask = torch.ones(len(order), len(order), dtype=torch.bool).tril()
        mask[past:] = True
        hidden = decoder(cache_free, mask[None, None], positions, None, split=past + 2)
        predicted = model.llm2vae(hidden[:, past + 2 :])
    expected = (predicted - (noise - clean)).square().mean()
    torch.testing.assert_close(backbone.generation_loss([sample], [9]).loss[0], expected, atol=1e-5, rtol=1e-5)


def test_a_fresh_generator_has_no_penalty_and_a_stirred_one_has(load: Callable[..., BagelBackbone]) -> None:
    backbone = load()
    samples = backbone.generate(REQUESTS, ROLLOUT)
    assert backbone.generation_loss(samples, [1, 1, 2]).penalty.tolist() == [0.0, 0.0, 0.0]
    stir(backbone, Role.GENERATOR)
    assert min(backbone.generation_loss(samples, [1, 1, 2]).penalty.tolist()) > 1e-4


def test_every_generator_weight_gets_a_gradient_and_nothing_else_does(backbone: BagelBackbone) -> None:
    scored = backbone.generation_loss(backbone.generate(REQUESTS, ROLLOUT), [1, 1, 2])
    (scored.loss.sum() + scored.penalty.sum()).backward()
    moved = {id(p) for p in backbone.trainable(Role.GENERATOR).values()}
    for name, parameter in backbone.model.named_parameters():
        grad = parameter.grad
        assert (grad is not None and float(grad.norm()) > 0) == (id(parameter) in moved), name


def test_checkpointing_changes_memory_not_gradients(load: Callable[..., BagelBackbone]) -> None:
    plain, saving = load(), load(checkpointing=True)
    samples = plain.generate(REQUESTS, ROLLOUT)
    results = []
    for backbone in (plain, saving):
        stir(backbone, Role.GENERATOR)
        scored = backbone.generation_loss(samples, [1, 1, 2])
        results.append(
            torch.autograd.grad(scored.loss.sum() + scored.penalty.sum(), backbone.trainable(Role.GENERATOR).values())
        )
    for wanted, actual in zip(*results, strict=True):
        torch.testing.assert_close(actual, wanted)


def test_without_the_generation_half_drawing_is_a_capability_error(load: Callable[..., BagelBackbone]) -> None:
    backbone, whole = load(generation=False), load()
    assert backbone.manifest.capabilities.image_loss is None
    with pytest.raises(CapabilityError, match="cannot draw"):
        backbone.generate(REQUESTS, ROLLOUT)
    with pytest.raises(CapabilityError, match="cannot draw"):
        backbone.generation_loss(whole.generate(REQUESTS[:1], ROLLOUT), [1])
    assert torch.equal(backbone.embed([picture(1), "a cat"]), whole.embed([picture(1), "a cat"]))


def test_without_the_generation_half_the_generators_adapter_still_travels(
    backbone: BagelBackbone, load: Callable[..., BagelBackbone], tmp_path: Path
) -> None:
    half = load(generation=False)
    stored = sum(p.untyped_storage().nbytes() for name, p in half.model.named_parameters() if "moe_gen.base" in name)
    assert 0 < stored < 1000
    backbone.save_role(Role.GENERATOR, tmp_path / "a")
    half.load_role(Role.GENERATOR, tmp_path / "a")
    half.save_role(Role.GENERATOR, tmp_path / "b")
    for file in ("adapter_model.safetensors", "adapter_config.json"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
