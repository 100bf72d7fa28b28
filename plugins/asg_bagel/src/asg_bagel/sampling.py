"""Rectified-flow sampling: time grid, guidance, Euler steps. Pure functions of a velocity network.

t: 1 noise -> 0 data,  x_t = (1 - t) x_0 + t e,  v = e - x_0,  x <- x - v (t_k - t_{k+1})
guided:  g = v_u + s_txt (v_c - v_u);  g = v_i + s_img (g - v_i);  rescaled to at most |v_c|
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from asg_bagel.options import Sampler

_EPSILON = 1e-8


@dataclass(frozen=True, eq=False)
class Velocities:
    """Predictions of one evaluation, each (B, n, w) float32.

    Attributes:
        context: under the whole context.
        without_text: under the context without its text; None where guidance is off.
        without_images: under the context without its images. In text-to-image that is the whole context, so the same
            tensor is given and no forward is spent; None where guidance is off.
    """

    context: Tensor
    without_text: Tensor | None = None
    without_images: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Step:
    """One Euler step: from ``latents`` at ``time``, by ``velocity``, to ``result``."""

    time: float
    latents: Tensor
    predicted: Velocities
    velocity: Tensor
    result: Tensor


Network = Callable[[Tensor, float, bool], Velocities]
"""(latents (B, n, w), time, whether guidance is on) -> velocities."""


def time_grid(count: int, shift: float) -> Tensor:
    """(count,) float32 from 1 to 0, shifted; the last point is where sampling ends and is never evaluated."""
    u = torch.linspace(1, 0, count)
    return shift * u / (1 + (shift - 1) * u)


def guidance_on(sampler: Sampler, time: float) -> bool:
    """Whether a step at ``time`` is guided; a text scale <= 1 switches everything off, image guidance too."""
    low, high = sampler.interval
    return sampler.text_scale > 1 and low < time <= high


def guide(v: Velocities, sampler: Sampler) -> Tensor:
    """(B, n, w) guided velocity. Norms are per image, so that a batch equals its singles."""
    if v.without_text is None:
        return v.context
    guided = v.without_text + sampler.text_scale * (v.context - v.without_text)
    if sampler.renorm == "text_channel":
        guided = _rescaled(guided, v.context, (-1,), sampler.renorm_min)
    if sampler.image_scale > 1 and v.without_images is not None:
        guided = v.without_images + sampler.image_scale * (guided - v.without_images)
    if sampler.renorm == "global":
        return _rescaled(guided, v.context, (-2, -1), sampler.renorm_min)
    if sampler.renorm == "channel":
        return _rescaled(guided, v.context, (-1,), sampler.renorm_min)
    return guided


def euler_steps(network: Network, noise: Tensor, sampler: Sampler) -> Iterator[Step]:
    """All N - 1 steps from ``noise`` (B, n, w) float32; the last step's ``result`` is the final latent."""
    grid = time_grid(sampler.num_timesteps, sampler.timestep_shift)
    latents = noise
    for time, following in zip(grid[:-1].tolist(), grid[1:].tolist(), strict=True):
        predicted = network(latents, time, guidance_on(sampler, time))
        velocity = guide(predicted, sampler)
        result = latents - velocity * (time - following)
        yield Step(time, latents, predicted, velocity, result)
        latents = result


def seeded_noise(seed: int, tokens: int, width: int) -> Tensor:
    """(tokens, width) float32, drawn on the CPU in token layout: the same for every device, dtype and batch."""
    return torch.randn(tokens, width, generator=torch.Generator().manual_seed(seed))


def _rescaled(guided: Tensor, target: Tensor, dims: tuple[int, ...], floor: float) -> Tensor:
    ratio: Tensor = target.norm(dim=dims, keepdim=True) / (guided.norm(dim=dims, keepdim=True) + _EPSILON)
    return guided * ratio.clamp(floor, 1.0)
