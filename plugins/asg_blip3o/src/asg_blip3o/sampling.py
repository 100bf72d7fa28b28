"""Stage 1, the feature flow: Euler integration with guidance against the all-zero condition, and the training loss."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor

from asg_blip3o.modeling_flow import FlowNetwork
from asg_core.backbones.devices import moved_to

TRAIN_TIMESTEPS = 1000
"""Timesteps of the flow schedule."""


@dataclass(frozen=True)
class FlowStep:
    """One Euler step as it happened: the features it started from and both velocities, each (B, C, g, g)."""

    x: Tensor
    null: Tensor | None
    conditional: Tensor


def flow_scheduler(shift: float = 1.0) -> FlowMatchEulerDiscreteScheduler:
    """The flow schedule: sigma 1 is noise, timesteps are 1000 sigma."""
    return FlowMatchEulerDiscreteScheduler(num_train_timesteps=TRAIN_TIMESTEPS, shift=shift)


def sampling_scheduler(steps: int, device: torch.device, shift: float = 1.0) -> FlowMatchEulerDiscreteScheduler:
    """A schedule of ``steps`` sigmas from 1 to 1/steps, evenly spaced, and the final 0."""
    scheduler = flow_scheduler(shift)
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 1.0 / steps, steps))
    start(scheduler, device)
    return scheduler


def start(scheduler: Any, device: torch.device) -> None:
    """Make a diffusers scheduler ready at its first step, so that no step waits for the device.

    Timesteps go to ``device``, where networks read them; sigmas stay on the CPU, as numbers of an update. Left alone it
    would fetch its timesteps to find the first one in them.
    """
    scheduler.timesteps = moved_to(device, scheduler.timesteps)
    scheduler.set_begin_index(0)


def network_timestep(timestep: Tensor) -> Tensor:
    """The timestep as the flow network sees it: truncated to an integer, while the update uses the exact sigma."""
    return timestep.long()


def sample_features(
    flow: FlowNetwork,
    queries: Tensor,
    noise: Tensor,
    *,
    steps: int,
    guidance: float,
    shift: float = 1.0,
    on_step: Callable[[FlowStep], None] | None = None,
) -> Tensor:
    """Integrate from noise to features.

    Args:
        flow: the flow network.
        queries: (B, n, D) conditions.
        noise: (B, C, g, g) standard normal.
        steps: Euler steps.
        guidance: scale; 1 runs the conditional branch only.
        shift: of the schedule.
        on_step: called with each step before its update.

    Returns:
        (B, C, g, g) float32 features: no normalisation, no scale factor.
    """
    guided = guidance != 1
    condition = torch.cat([torch.zeros_like(queries), queries]) if guided else queries  # order [null, condition]
    context = flow.context(condition)
    scheduler = sampling_scheduler(steps, noise.device, shift)
    x = noise.float()
    for timestep in scheduler.timesteps:
        rows = torch.cat([x, x]) if guided else x
        velocity = flow(rows, network_timestep(timestep).expand(len(rows)), context)
        null = None
        conditional = velocity
        if guided:
            null, conditional = velocity.chunk(2)
            velocity = null + guidance * (conditional - null)
        if on_step is not None:
            on_step(FlowStep(x, null, conditional))
        x = scheduler.step(velocity, timestep, x, return_dict=False)[0]
    return x


def feature_tokens(features: Tensor) -> Tensor:
    """(B, C, g, g) features to (B, g*g, C) tokens, row-major, as the pixel decoder reads them."""
    return features.flatten(2).transpose(1, 2)


@dataclass(frozen=True)
class FlowPoint:
    """Where on the path each sample is: network ``timesteps`` (B,), ``sigmas`` (B,), ``noise`` like the targets."""

    timesteps: Tensor
    sigmas: Tensor
    noise: Tensor


def flow_point(u: Tensor, noise: Tensor, shift: float = 1.0) -> FlowPoint:
    """The point of uniform draws: index floor(1000 u) into the timesteps 1000, 999, ..., 1.

    Args:
        u: (B,) in [0, 1).
        noise: (B, C, g, g) standard normal.
        shift: of the schedule.
    """
    scheduler = flow_scheduler(shift)
    index = (u * TRAIN_TIMESTEPS).long().cpu()
    timesteps, sigmas = (moved_to(noise.device, table[index]) for table in (scheduler.timesteps, scheduler.sigmas))
    return FlowPoint(timesteps, sigmas, noise)


def velocity_at(flow: FlowNetwork, context: Tensor, targets: Tensor, point: FlowPoint) -> Tensor:
    """Predicted velocity (B, C, g, g) at x_t = (1 - sigma) x_0 + sigma noise."""
    sigma = point.sigmas.view(-1, 1, 1, 1)
    x: Tensor = (1 - sigma) * targets + sigma * point.noise
    predicted: Tensor = flow(x, point.timesteps, context)
    return predicted


def flow_error(velocity: Tensor, targets: Tensor, noise: Tensor) -> Tensor:
    """(B,) mean over elements of (v - (noise - x_0))^2, float32, uniformly weighted over time."""
    return (velocity.float() - (noise - targets)).square().flatten(1).mean(dim=1)


def draw_point(seed: int, shape: tuple[int, ...], device: torch.device, shift: float = 1.0) -> FlowPoint:
    """The point of ``seed``: one timestep and one noise of ``shape`` (C, g, g), the same on every device."""
    generator = torch.Generator().manual_seed(seed)
    u = torch.rand(1, generator=generator)
    return flow_point(u, moved_to(device, torch.randn(1, *shape, generator=generator)), shift)
