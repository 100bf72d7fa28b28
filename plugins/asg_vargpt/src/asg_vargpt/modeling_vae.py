"""The VAE's convolutional halves: diffusers' own classes with the released normalisation groups."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.autoencoders.vae import Decoder, Encoder
from torch import Tensor, nn

from asg_core.errors import WeightsError
from asg_vargpt.config import VaeShape
from asg_vargpt.precision import exact_convolutions


class Vae(nn.Module):
    """Pixels (B, 3, 16H, 16W) in [-1, 1] <-> features (B, bits, H, W).

    Always float32, and never TF32: bits are signs of its output, and those near zero flip.
    """

    def __init__(self, shape: VaeShape) -> None:
        super().__init__()
        levels = len(shape.widths)
        common: dict[str, Any] = {
            "block_out_channels": shape.widths,
            "norm_num_groups": 1,
            "mid_block_add_attention": False,
        }
        self.encoder = Encoder(
            3,
            shape.bits,
            ("DownEncoderBlock2D",) * levels,
            layers_per_block=shape.encoder_blocks,
            double_z=False,
            **common,
        )
        self.decoder = Decoder(
            shape.bits, 3, ("UpDecoderBlock2D",) * levels, layers_per_block=shape.decoder_blocks - 1, **common
        )
        for module in self.modules():
            if isinstance(module, nn.GroupNorm):
                module.num_groups = _groups(module.num_channels)

    def encode(self, pixels: Tensor) -> Tensor:
        """Pixels -> features, float32."""
        with exact_convolutions():
            return self.encoder(pixels.float())  # type: ignore[no-any-return]

    def decode(self, latent: Tensor) -> Tensor:
        """Features -> pixels clamped to [-1, 1], float32."""
        with exact_convolutions():
            return torch.clamp(self.decoder(latent.float()), -1.0, 1.0)


def _groups(channels: int) -> int:
    for groups in (32, 24):
        if channels % groups == 0:
            return groups
    raise WeightsError(
        f"a VAE layer of width {channels} cannot be normalised",
        "VARGPT's VAE uses 32 or 24 groups, and neither divides the width",
        "use the released weights",
    )
