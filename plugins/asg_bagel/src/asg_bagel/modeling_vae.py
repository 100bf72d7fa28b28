"""The FLUX.1 autoencoder (diffusers' class) and the layout of latent tokens.

A latent map (z, H/8, W/8) is cut into 2 x 2 cells; a token is (row in cell, column in cell, channel), channel fastest.
"""

from __future__ import annotations

import re

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


_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def released_vae_name(name: str, levels: int) -> str:
    """The released (latent-diffusion style) name of one of diffusers' autoencoder parameters.

    >>> released_vae_name("decoder.up_blocks.0.resnets.1.conv_shortcut.weight", 4)
    'decoder.up.3.block.1.nin_shortcut.weight'
    """
    name = re.sub(r"down_blocks\.(\d+)\.", r"down.\1.", name)
    name = re.sub(r"up_blocks\.(\d+)\.", lambda m: f"up.{levels - 1 - int(m[1])}.", name)
    name = re.sub(r"mid_block\.resnets\.(\d+)", lambda m: f"mid.block_{int(m[1]) + 1}", name)
    name = name.replace("mid_block.attentions.0", "mid.attn_1")
    if ".attn_1." in name:
        name = re.sub(r"group_norm|to_[qkv]|to_out\.0", lambda m: _ATTENTION[m[0]], name)
    name = re.sub(r"(down|up)samplers\.0", r"\1sample", name)
    return (
        name.replace("resnets", "block").replace("conv_shortcut", "nin_shortcut").replace("conv_norm_out", "norm_out")
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
