"""The velocity network over prefilled contexts, and the flow-matching error."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from asg_bagel.kv_cache import Context, Rows, stack
from asg_bagel.modeling_language import Recompute, stack_positions
from asg_bagel.sampling import Network, Velocities
from asg_bagel.text import MARKERS, SegmentBuilder


def velocity(
    builder: SegmentBuilder,
    rows: Rows,
    latents: Tensor,
    time: Tensor,
    grid_rows: int,
    recompute: Recompute | None = None,
) -> Tensor:
    """Predicted velocity of noisy latents, each under its own context.

    Args:
        builder: the model.
        rows: B prefilled contexts; left untouched.
        latents: (B, n, w) float32.
        time: (B,) float32 in [0, 1].
        grid_rows: of the latent grid.
        recompute: gradient checkpointing, see :class:`asg_bagel.modeling_language.Decoder`.

    Returns:
        (B, n, w) float32, differentiable.
    """
    model = builder.model
    embeds = builder.latents(latents, time, grid_rows)
    batch, length = embeds.shape[:2]
    mask = None
    if rows.visible is not None:
        mask = torch.cat([rows.visible, rows.visible.new_ones(batch, length)], dim=1)[:, None, None]
    positions = stack_positions(rows.counters, length, embeds.device)
    hidden = model.language_model.model(
        embeds, mask, positions, rows.cache, split=MARKERS, append=False, recompute=recompute
    )
    predicted: Tensor = model.llm2vae(hidden[:, MARKERS:])
    return predicted.float()


def guided_network(
    builder: SegmentBuilder,
    context: Sequence[Context],
    without_text: Sequence[Context],
    without_images: Sequence[Context] | None,
    grid_rows: int,
) -> Network:
    """A network that runs all guidance branches of B images as one batch.

    Args:
        builder: the model.
        context: B whole contexts.
        without_text: the same without their text.
        without_images: the same without their images; None where there are none, which saves the branch.
        grid_rows: of the latent grid.
    """
    plain = stack(context)
    branches = [context, without_text] if without_images is None else [context, without_text, without_images]
    full = stack([one for branch in branches for one in branch])

    def network(latents: Tensor, time: float, guided: bool) -> Velocities:
        if not guided:
            return Velocities(velocity(builder, plain, latents, _times(time, latents), grid_rows))
        repeated = latents.repeat(len(branches), 1, 1)
        parts = velocity(builder, full, repeated, _times(time, repeated), grid_rows).chunk(len(branches))
        return Velocities(parts[0], parts[1], parts[2] if without_images is not None else parts[0])

    return network


def training_time(raw: Tensor, shift: float) -> Tensor:
    """Standard normal draws (B,) -> flow times in (0, 1): sigmoid, then the shift."""
    u = raw.sigmoid()
    return shift * u / (1 + (shift - 1) * u)


def noisy(clean: Tensor, noise: Tensor, time: Tensor) -> Tensor:
    """(B, n, w) x_t = (1 - t) x_0 + t e."""
    t = time[:, None, None]
    return (1 - t) * clean + t * noise


def squared_errors(predicted: Tensor, clean: Tensor, noise: Tensor) -> Tensor:
    """(B, n, w) squared difference to the velocity e - x_0; the loss is its mean over tokens and channels."""
    return (predicted - (noise - clean)).square()


def _times(time: float, latents: Tensor) -> Tensor:
    return torch.full((len(latents),), time, device=latents.device)
