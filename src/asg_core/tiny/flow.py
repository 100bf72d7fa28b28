"""Drawing as 16 latents by a rectified flow on the same trunk (Liu et al. 2022, arXiv 2209.03003).

x_t = (1 - t) noise + t latents; the model predicts the velocity latents - noise with full attention among the 16 cells.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import DynamicCache

from asg_core.tiny.generation import Prompts
from asg_core.tiny.model import CELLS, TinyModel


def time_features(time: Tensor) -> Tensor:
    """(n,) times in [0, 1] -> (n, 32) sines and cosines of 16 frequencies."""
    angles = time[:, None] * 2 * torch.pi * 2 ** torch.linspace(-2, 5, 16, device=time.device)
    return torch.cat([angles.sin(), angles.cos()], -1)


def embed_noisy(model: TinyModel, mixed: Tensor, time: Tensor) -> Tensor:
    """x_t (B, 16, latent) at times (B,) -> trunk inputs (B, 16, width)."""
    dtype = model.flow_in.weight.dtype
    moment = model.flow_time(time_features(time).to(dtype))
    embeds: Tensor = model.flow_in(mixed.to(dtype)) + model.cell_positions() + moment[:, None]
    return embeds


def velocity(
    model: TinyModel, prompts: Prompts, mixed: Tensor, time: Tensor, cache: DynamicCache | None = None
) -> Tensor:
    """Predicted velocity (B, 16, latent), float32, differentiable.

    Args:
        model: the model under whichever adapter is active.
        prompts: B captions in their template.
        mixed: x_t, (B, 16, latent).
        time: (B,) in [0, 1].
        cache: holds the prompts already, and is left as it was; None runs the prompts too.
    """
    length = prompts.ids.shape[1]
    drawn = prompts.lengths + torch.arange(CELLS, device=mixed.device)
    mask = prompts.mask(0, CELLS).clone()
    mask[:, :, length:, length:] = True
    embeds = embed_noisy(model, mixed, time)
    if cache is None:
        embeds = torch.cat([model.trunk.embed_tokens(prompts.ids), embeds], 1)
        hidden = model.run(embeds, mask, torch.cat([prompts.positions, drawn], 1))[:, length:]
    else:
        hidden = model.trunk(
            inputs_embeds=embeds,
            attention_mask=mask[:, :, length:],
            position_ids=drawn,
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state
        cache.crop(-CELLS)
    prediction: Tensor = model.flow_out(hidden)
    return prediction.float()


def sample_latents(model: TinyModel, prompts: Prompts, noise: Tensor, steps: int) -> Tensor:
    """Integrate from noise (B, 16, latent) at t = 0 to latents at t = 1 in ``steps`` Euler steps."""
    cache = DynamicCache(config=model.trunk.config)
    model.trunk(
        inputs_embeds=model.trunk.embed_tokens(prompts.ids),
        attention_mask=prompts.mask(0, 0),
        position_ids=prompts.positions,
        past_key_values=cache,
        use_cache=True,
    )
    state = noise
    for step in range(steps):
        time = torch.full((len(noise),), step / steps, device=noise.device)
        state = state + velocity(model, prompts, state, time, cache) / steps
    return state


def nearest_codes(model: TinyModel, latents: Tensor) -> Tensor:
    """(B, 16, latent) -> (B, 16) codebook entries nearest to each cell's latent."""
    return torch.cdist(latents, model.latents.float()).argmin(-1)
