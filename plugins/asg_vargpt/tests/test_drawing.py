"""Drawing: seeds, batches, one prefill, guidance, scales; and that the stored bits give back their log-probs."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from asg_vargpt.backbone import VargptBackbone
from asg_vargpt.prefill import prefill
from asg_vargpt.sampling import draw
from asg_vargpt.scales import schedule

from asg_core.backbones.interface import ImageRequest, ImageSample, ImageSampling, Role
from asg_core.errors import CapabilityError, ConfigError

Load = Callable[..., VargptBackbone]
REQUESTS = [
    ImageRequest("a red kite", 1),
    ImageRequest("a green boat on a long river", 2),
    ImageRequest("a red kite", 3),
]


def _bits(sample: ImageSample) -> torch.Tensor:
    return sample.trajectory["bits"]


@pytest.fixture(scope="module")
def drawn(awake: VargptBackbone) -> list[ImageSample]:
    """Three images of two prompts, drawn as one batch."""
    return awake.generate(REQUESTS, ImageSampling())


def test_a_batch_equals_its_singles_in_any_order(awake: VargptBackbone, drawn: list[ImageSample]) -> None:
    singles = [awake.generate([request], ImageSampling())[0] for request in REQUESTS]
    reversed_batch = awake.generate(REQUESTS[::-1], ImageSampling())[::-1]
    for together, alone, turned in zip(drawn, singles, reversed_batch, strict=True):
        assert torch.equal(_bits(together), _bits(alone))
        assert torch.equal(_bits(together), _bits(turned))
        difference = np.abs(np.asarray(together.image, dtype=int) - np.asarray(alone.image, dtype=int))
        assert difference.max() <= 1
        assert together.token_logprobs is not None
        assert alone.token_logprobs is not None
        assert torch.allclose(together.token_logprobs, alone.token_logprobs, atol=1e-4)


def test_split_batches_change_nothing(load: Load, wake: Callable[..., None], drawn: list[ImageSample]) -> None:
    backbone = load(draw_batch=2)
    for seed, role in enumerate(Role):
        wake(backbone, role, seed)
    for ours, theirs in zip(drawn, backbone.generate(REQUESTS, ImageSampling()), strict=True):
        assert torch.equal(_bits(ours), _bits(theirs))


def test_seed_prompt_and_role_matter_and_global_randomness_does_not(
    awake: VargptBackbone, drawn: list[ImageSample]
) -> None:
    torch.manual_seed(99)
    again, other_seed = awake.generate([REQUESTS[0], ImageRequest("a red kite", 4)], ImageSampling())
    base = awake.generate([REQUESTS[0]], ImageSampling(), role=None)[0]
    assert torch.equal(_bits(again), _bits(drawn[0]))
    assert not torch.equal(_bits(other_seed), _bits(drawn[0]))
    assert not torch.equal(_bits(base), _bits(drawn[0]))
    assert not torch.equal(_bits(drawn[0]), _bits(drawn[1]))


def test_stored_bits_give_back_the_sampled_logprobs(awake: VargptBackbone, drawn: list[ImageSample]) -> None:
    scored = awake.generation_loss(drawn, [0] * len(drawn))
    assert scored.token_logprobs is not None
    for sample, row, loss in zip(drawn, scored.token_logprobs, scored.loss, strict=True):
        assert sample.token_logprobs is not None
        assert torch.allclose(row, sample.token_logprobs, atol=2e-5)
        assert math.isclose(loss.item(), float(-sample.token_logprobs.mean()), rel_tol=1e-4)


def test_a_score_batch_equals_its_singles(awake: VargptBackbone, drawn: list[ImageSample]) -> None:
    with torch.no_grad():
        together = awake.generation_loss(drawn, [0] * len(drawn))
        for row, sample in enumerate(drawn):
            alone = awake.generation_loss([sample], [0])
            assert torch.allclose(alone.loss[0], together.loss[row], atol=1e-5)
            assert torch.allclose(alone.penalty[0], together.penalty[row], atol=1e-5)


def test_an_image_is_worth_the_sum_of_its_scales(awake: VargptBackbone, drawn: list[ImageSample]) -> None:
    with torch.no_grad():
        scores = awake.candidates.scores(drawn[:1], Role.GENERATOR)[0]
    assert scores.per_scale.shape == (1, 7)
    assert torch.allclose(scores.per_scale.sum(1), scores.per_image, rtol=1e-5)
    assert drawn[0].token_logprobs is not None
    assert math.isclose(float(scores.per_image), float(drawn[0].token_logprobs.sum()), rel_tol=1e-5)


def test_a_scale_depends_on_earlier_scales_only(awake: VargptBackbone, drawn: list[ImageSample]) -> None:
    plan = schedule(1.0, "0.06M")
    bits = _bits(drawn[0]).clone()
    bits[sum(plan.lengths[:4]) : sum(plan.lengths[:5])] ^= 1
    changed = ImageSample(drawn[0].request, drawn[0].image, {**drawn[0].trajectory, "bits": bits})
    with torch.no_grad():
        before, after = (awake.candidates._logits([s], Role.GENERATOR)[0] for s in (drawn[0], changed))
    seen = sum(plan.lengths[:5])
    assert torch.equal(before[:seen], after[:seen])
    assert not torch.allclose(before[seen:], after[seen:], atol=1e-3)


def test_each_prompt_is_prefilled_once_and_context_keys_are_made_once(
    awake: VargptBackbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: list[int] = []
    attention = awake.model.decoder.blocks[0].ca
    real = attention.keys_values
    monkeypatch.setattr(attention, "keys_values", lambda context: rows.append(len(context)) or real(context))
    prefilled: list[int] = []
    monkeypatch.setattr(
        "asg_vargpt.drawing.prefill",
        lambda model, prompts: prefilled.append(len(prompts)) or prefill(model, prompts),
    )
    awake.generate(REQUESTS, ImageSampling())
    assert prefilled == [2]
    assert rows == [4]  # two prompts and their unconditional rows, for three images of seven scales


@torch.no_grad()
def test_without_guidance_there_is_no_unconditional_stream(backbone: VargptBackbone) -> None:
    plan = schedule(1.0, "0.06M")
    prompt = backbone.text.drawing_ids("a kite")

    def likeliest(scale: int, logits: torch.Tensor) -> torch.Tensor:
        return logits.argmax(-1).to(torch.uint8)

    def steps(guidance: list[float]) -> list[Any]:
        return list(draw(backbone.model, prefill(backbone.model, [prompt]), [0], plan, guidance, [1.0] * 7, likeliest))

    plain, guided = steps([1.0] * 7), steps([1.0] * 6 + [2.0])
    assert [len(step.logits) for step in plain] == [1] * 7
    assert [len(step.logits) for step in guided] == [2] * 7
    for one, two in zip(plain[:6], guided[:6], strict=True):
        assert torch.equal(one.bits, two.bits)
    for step in plain:
        assert torch.equal(step.guided, step.logits)


def test_tau_and_temperature_sharpen(load: Load) -> None:
    def surprise(temperature: float, **sampler: Any) -> float:
        backbone = load(rollout={"resolution": "0.06M", "guidance": 1.0, **sampler})
        sample = backbone.generate([REQUESTS[0]], ImageSampling(temperature=temperature))[0]
        assert sample.token_logprobs is not None
        return -float(sample.token_logprobs.mean())

    sharp = surprise(1.0, tau=0.2, top_p=1.0)
    assert sharp < surprise(1.0, tau=1.0, top_p=1.0) < surprise(1.0, tau=3.0, top_p=1.0)
    assert surprise(0.2, tau=1.0, top_p=1.0) == sharp
    assert surprise(1.0, tau=1.0, top_k=1) < sharp


def test_settings_may_differ_by_scale_and_must_fit(load: Load) -> None:
    flat = load(rollout={"resolution": "0.06M", "guidance": 3.0}).generate(REQUESTS[:1], ImageSampling())[0]
    same = load(rollout={"resolution": "0.06M", "guidance": [3.0] * 7}).generate(REQUESTS[:1], ImageSampling())[0]
    late = load(rollout={"resolution": "0.06M", "guidance": [3.0] * 6 + [1.0]}).generate(REQUESTS[:1], ImageSampling())
    coarse = 521 - 256
    assert torch.equal(_bits(flat), _bits(same))
    assert torch.equal(_bits(flat)[:coarse], _bits(late[0])[:coarse])
    assert not torch.equal(_bits(flat)[coarse:], _bits(late[0])[coarse:])
    with pytest.raises(ConfigError, match="7 scales"):
        load(rollout={"resolution": "0.06M", "tau": [0.5] * 10}).generate(REQUESTS[:1], ImageSampling())


def test_profiles_have_their_own_sampler(load: Load) -> None:
    backbone = load(quality={"resolution": "0.06M", "aspect_ratio": 2.0})
    assert backbone.generate(REQUESTS[:1], ImageSampling("rollout"))[0].image.size == (256, 256)
    assert backbone.generate(REQUESTS[:1], ImageSampling("quality"))[0].image.size == (176, 352)


def test_a_prompt_too_long_for_guidance_is_a_typed_error(load: Load) -> None:
    long = ImageRequest("kite " * 200, 0)
    with pytest.raises(CapabilityError, match="512"):
        load().generate([long], ImageSampling())
    unguided = load(rollout={"resolution": "0.06M", "guidance": 1.0}).generate([long], ImageSampling())[0]
    assert len(unguided.trajectory["prompt_ids"]) > 513


def test_the_limit_of_guidance_is_512_tokens_before_the_start_token(backbone: VargptBackbone) -> None:
    plan = schedule(1.0, "0.06M")
    bits = torch.zeros

    def zeros(scale: int, logits: torch.Tensor) -> torch.Tensor:
        return bits(logits.shape[:-1], dtype=torch.uint8)

    def first_step(tokens: int) -> None:
        prompt = [0] * (tokens - 1) + [backbone.model.architecture.tokens.start]
        with torch.no_grad():
            next(draw(backbone.model, prefill(backbone.model, [prompt]), [0], plan, [3.0] * 7, [1.0] * 7, zeros))

    first_step(513)
    with pytest.raises(CapabilityError, match="513 tokens of context"):
        first_step(514)


def test_positions_replay_too(load: Load) -> None:
    backbone = load(policy_unit="position")
    sample = backbone.generate(REQUESTS[:1], ImageSampling())[0]
    scored = backbone.generation_loss([sample], [0])
    assert sample.token_logprobs is not None
    assert scored.token_logprobs is not None
    assert len(sample.token_logprobs) == 521
    assert torch.allclose(scored.token_logprobs[0], sample.token_logprobs, atol=1e-4)


def test_another_member_of_the_family_draws_and_scores_at_another_shape(load: Load, relative: Path) -> None:
    backbone = load(relative, rollout={"resolution": "0.06M", "aspect_ratio": 0.7, "tau": 1.0, "guidance": 2.0})
    requests = [ImageRequest("a kite", 1), ImageRequest("a", 2)]
    samples = backbone.generate(requests, ImageSampling())
    plan = schedule(0.7, "0.06M")
    assert samples[0].image.size == (plan.pixels[1], plan.pixels[0])
    assert plan.grids[-1] == (14, 21)
    scored = backbone.generation_loss(samples, [0, 0])
    for sample, row in zip(samples, scored.token_logprobs, strict=True):  # type: ignore[arg-type]
        assert sample.trajectory["bits"].shape == (plan.positions, 5)
        assert torch.allclose(row, sample.token_logprobs, atol=2e-5)  # type: ignore[arg-type]
    assert 0.1 < float(samples[0].trajectory["bits"].float().mean()) < 0.9
    with pytest.raises(CapabilityError, match="up to 130"):
        backbone.generate([ImageRequest("kite " * 20, 0)], ImageSampling())
