"""Flow matching on features: the training loss of stage 1, with timestep and noise given from outside."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from asg_blip3o.modeling_flow import FlowNetwork
from asg_blip3o.sampling import TRAIN_TIMESTEPS, flow_scheduler
from asg_core.backbones.devices import moved_to


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
