"""The VAE's convolutional halves: diffusers' own classes with the released normalisation groups.

They convolve in float32 as written: on CUDA torch runs that in TF32 by default, which keeps 10 bits of a mantissa.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock
from typing import Any

import torch
from diffusers.models.autoencoders.vae import Decoder, Encoder
from torch import Tensor, nn

from asg_core.errors import WeightsError
from asg_vargpt.config import VaeShape


class _Convolutions:
    """The process's setting, and who needs it off; the first one in remembers it, the last one out puts it back."""

    def __init__(self) -> None:
        self._lock, self._users, self._before = Lock(), 0, ""

    def enter(self) -> None:
        with self._lock:
            if not self._users:
                self._before = self._exchange("ieee")
            self._users += 1

    def leave(self) -> None:
        with self._lock:
            self._users -= 1
            if not self._users:
                self._exchange(self._before)

    @staticmethod
    def _exchange(precision: str) -> str:
        cudnn = torch.backends.cudnn
        if hasattr(cudnn, "conv"):
            before: str = cudnn.conv.fp32_precision
            cudnn.conv.fp32_precision = precision
            return before
        before = "tf32" if cudnn.allow_tf32 else "ieee"  # torch before 2.9
        cudnn.allow_tf32 = precision == "tf32"
        return before


_CONVOLUTIONS = _Convolutions()


@contextmanager
def exact_convolutions() -> Iterator[None]:
    """Inside, float32 convolutions on CUDA are not TF32; afterwards the setting is the caller's again.

    The setting is the process's: another thread's convolutions are exact, too, while this lasts.
    """
    _CONVOLUTIONS.enter()
    try:
        yield
    finally:
        _CONVOLUTIONS.leave()


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
