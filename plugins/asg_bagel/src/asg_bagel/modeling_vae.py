"""The FLUX.1 autoencoder (diffusers' class) and the layout of latent tokens.

A latent map (z, H/8, W/8) is cut into 2 x 2 cells; a token is (row in cell, column in cell, channel), channel fastest.
"""

from __future__ import annotations

import numpy as np
import torch
from diffusers import AutoencoderKL
from PIL import Image
from torch import Tensor

from asg_bagel.config import VaeConfig


def build_vae(config: VaeConfig) -> AutoencoderKL:
    """diffusers' autoencoder with these sizes; weights uninitialised."""
    levels = len(config.ch_mult)
    return AutoencoderKL(
        in_channels=config.in_channels,
        out_channels=config.out_ch,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=tuple(config.ch * m for m in config.ch_mult),
        layers_per_block=config.num_res_blocks,
        latent_channels=config.z_channels,
        norm_num_groups=32,
        scaling_factor=config.scale_factor,
        shift_factor=config.shift_factor,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )


def encode_latent(vae: AutoencoderKL, pixels: Tensor, noise: Tensor) -> Tensor:
    """Pixels (B, 3, H, W) in [-1, 1] -> scaled latent (B, z, H/8, W/8) float32, sampled with ``noise`` of that shape.

    Computed from the raw moments: diffusers' own distribution clamps the log-variance, BAGEL does not.
    """
    moments = vae.encoder(pixels.to(vae.dtype)).float()
    mean, logvar = moments.chunk(2, dim=1)
    sample = mean + torch.exp(0.5 * logvar) * noise.to(mean)
    latent: Tensor = vae.config.scaling_factor * (sample - vae.config.shift_factor)
    return latent


def decode_latent(vae: AutoencoderKL, latent: Tensor) -> Tensor:
    """Scaled latent map (B, z, h, w) -> pixels (B, 3, 8h, 8w) float32, about [-1, 1], not clamped."""
    decoded: Tensor = vae.decoder((latent / vae.config.scaling_factor + vae.config.shift_factor).to(vae.dtype))
    return decoded.float()


def to_tokens(latent: Tensor, patch: int) -> Tensor:
    """Latent map (B, z, h p, w p) -> tokens (B, h w, p p z)."""
    batch, channels, height, width = latent.shape
    cells = latent.view(batch, channels, height // patch, patch, width // patch, patch)
    return cells.permute(0, 2, 4, 3, 5, 1).reshape(batch, -1, patch * patch * channels)


def to_map(tokens: Tensor, rows: int, patch: int) -> Tensor:
    """Tokens (B, h w, p p z) in ``rows`` = h rows -> latent map (B, z, h p, w p)."""
    batch, count, width = tokens.shape
    cells = tokens.view(batch, rows, count // rows, patch, patch, width // patch**2)
    return cells.permute(0, 5, 1, 3, 2, 4).reshape(batch, -1, rows * patch, count // rows * patch)


def to_images(pixels: Tensor) -> list[Image.Image]:
    """Pixels (B, 3, H, W) in [-1, 1] -> RGB images; values are clamped and truncated, not rounded, as upstream does."""
    levels = (pixels.float() * 0.5 + 0.5).clamp(0, 1) * 255
    arrays = levels.to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    return [Image.fromarray(np.ascontiguousarray(array)) for array in arrays]
