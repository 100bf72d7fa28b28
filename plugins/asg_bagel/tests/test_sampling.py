"""Guidance and time grid by hand."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError

from asg_bagel.options import Sampler
from asg_bagel.sampling import Velocities, euler_steps, guidance_on, guide, seeded_noise, time_grid


def velocities(batch: int = 1, seed: int = 0) -> Velocities:
    stream = torch.Generator().manual_seed(seed)
    return Velocities(*(torch.randn(batch, 5, 4, generator=stream) for _ in range(3)))


def test_the_grid_runs_from_noise_to_data_with_the_shift() -> None:
    assert time_grid(5, 1.0).tolist() == [1.0, 0.75, 0.5, 0.25, 0.0]
    assert time_grid(3, 3.0).tolist() == [1.0, 0.75, 0.0]


def test_n_points_are_n_minus_one_evaluations_and_a_constant_velocity_lands_exactly() -> None:
    noise, target = torch.ones(1, 2, 3), torch.full((1, 2, 3), -0.5)
    steps = list(euler_steps(lambda x, t, on: Velocities(noise - target), noise, Sampler(num_timesteps=7)))
    assert len(steps) == 6
    torch.testing.assert_close(steps[-1].result, target)


def test_guidance_is_on_above_low_and_up_to_high() -> None:
    sampler = Sampler(interval=(0.4, 0.9))
    assert [guidance_on(sampler, t) for t in (0.4, 0.41, 0.9, 0.91)] == [False, True, True, False]


def test_a_text_scale_of_one_switches_image_guidance_off_too() -> None:
    assert not guidance_on(Sampler(text_scale=1.0, image_scale=3.0), 0.9)


def test_without_other_branches_nothing_is_guided_or_rescaled() -> None:
    v = velocities()
    assert torch.equal(guide(Velocities(v.context), Sampler()), v.context)


def test_two_branches_equal_upstreams_three_in_text_to_image() -> None:
    v = velocities()
    assert v.without_text is not None
    two = guide(Velocities(v.context, v.without_text, v.context), Sampler())
    as_text_scale = guide(Velocities(v.context, v.without_text, v.context), Sampler(text_scale=5.5, image_scale=1.0))
    torch.testing.assert_close(two, as_text_scale)


def test_global_renorm_keeps_each_images_norm_and_ignores_its_neighbours() -> None:
    many = velocities(batch=3)
    together = guide(many, Sampler())
    torch.testing.assert_close(together.flatten(1).norm(dim=1), many.context.flatten(1).norm(dim=1))
    for i in range(3):
        parts = (v[i : i + 1] for v in (many.context, many.without_text, many.without_images) if v is not None)
        assert torch.equal(guide(Velocities(*parts), Sampler()), together[i : i + 1])


def test_channel_renorm_keeps_each_tokens_norm() -> None:
    v = velocities()
    guided = guide(v, Sampler(renorm="channel"))
    torch.testing.assert_close(guided.norm(dim=-1), v.context.norm(dim=-1))


def test_text_channel_renorm_comes_before_image_guidance() -> None:
    v = velocities()
    assert v.without_images is not None
    text_only = guide(v, Sampler(renorm="channel", image_scale=1.0))
    expected = v.without_images + 2.0 * (text_only - v.without_images)
    torch.testing.assert_close(guide(v, Sampler(renorm="text_channel", image_scale=2.0)), expected)


def test_a_shorter_guided_velocity_is_never_stretched() -> None:
    v = Velocities(torch.ones(1, 2, 2), torch.full((1, 2, 2), 1.1))
    assert float(guide(v, Sampler(image_scale=1.0)).max()) == pytest.approx(0.7)


def test_the_renorm_floor_holds() -> None:
    v = Velocities(torch.ones(1, 2, 2), torch.full((1, 2, 2), -99.0))
    assert float(guide(v, Sampler(image_scale=1.0, renorm_min=0.5)).max()) == pytest.approx(0.5 * 301)


def test_noise_belongs_to_the_seed_and_is_upstreams_layout() -> None:
    torch.manual_seed(3)
    assert torch.equal(seeded_noise(3, 6, 4), torch.randn(6, 4))


def test_an_unordered_interval_is_refused() -> None:
    with pytest.raises(ValidationError, match="interval"):
        Sampler(interval=(0.9, 0.4))
