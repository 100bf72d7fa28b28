"""The pixel decoder: an SDXL-type UNet that turns feature tokens into latents, and the SDXL autoencoder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import AutoencoderKL, EulerDiscreteScheduler, UNet2DConditionModel
from PIL import Image
from torch import Tensor, nn

from asg_blip3o.sampling import start
from asg_core.backbones.devices import tensor_on
from asg_core.errors import ConfigError

ORIGINAL_SIDE = 1024
"""The size condition's "original size" stays 1024 whatever is drawn, as in the original."""


@dataclass(frozen=True)
class DecoderStep:
    """One step as it happened: guided noise prediction and latents after the update, both (B, 4, h, w) float32."""

    guided: Tensor
    latents: Tensor


class PixelDecoder(nn.Module):
    """Stage 2. Every value comes from the release's own files.

    Args:
        unet: ``unet/config.json``.
        vae: ``vae/config.json``.
        scheduler: ``scheduler/scheduler_config.json``.
    """

    def __init__(self, unet: dict[str, Any], vae: dict[str, Any], scheduler: dict[str, Any]) -> None:
        super().__init__()
        self.unet = UNet2DConditionModel.from_config(unet)
        self.vae = AutoencoderKL.from_config(vae)
        self.scheduler_config = scheduler

    @property
    def latent_channels(self) -> int:
        """Channels of a latent."""
        return int(self.vae.config.latent_channels)

    @property
    def latent_factor(self) -> int:
        """Pixels per latent cell and side."""
        return 1 << (len(self.vae.config.block_out_channels) - 1)

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """(C, h, w) of the latent of a ``height`` x ``width`` image.

        Raises:
            ConfigError: a side is no multiple of the total downsampling of autoencoder and UNet.
        """
        multiple = self.latent_factor * 2 ** (len(self.unet.config.block_out_channels) - 1)
        if height % multiple or width % multiple:
            raise ConfigError(
                f"image size {height}x{width} is not possible",
                f"autoencoder and UNet downsample by {multiple} in all",
                f"choose height and width as multiples of {multiple}",
            )
        return self.latent_channels, height // self.latent_factor, width // self.latent_factor

    def scheduler(self, steps: int, device: torch.device) -> EulerDiscreteScheduler:
        """A fresh scheduler with its ``steps`` timesteps set."""
        scheduler = EulerDiscreteScheduler.from_config(self.scheduler_config)
        scheduler.set_timesteps(steps)
        start(scheduler, device)
        return scheduler

    def sample(
        self,
        features: Tensor,
        negative: Tensor,
        noise: Tensor,
        *,
        steps: int,
        guidance: float,
        on_step: Callable[[DecoderStep], None] | None = None,
    ) -> Tensor:
        """Denoise latents under the feature tokens.

        Args:
            features: (B, n, C) feature tokens of stage 1.
            negative: (1, n, C) feature tokens to guide away from.
            noise: (B, 4, h, w) standard normal.
            steps: scheduler steps.
            guidance: scale; 1 runs the conditional branch only.
            on_step: called after each step.

        Returns:
            (B, 4, h, w) float32 latents, scaled as the autoencoder was trained.
        """
        batch = len(features)
        guided = guidance != 1
        tokens = torch.cat([features, negative.expand(batch, -1, -1)]) if guided else features
        tokens = tokens.to(self.unet.dtype)
        added = {"text_embeds": tokens.mean(dim=1), "time_ids": self.time_ids(noise, len(tokens))}
        scheduler = self.scheduler(steps, noise.device)
        latents: Tensor = noise.float() * scheduler.init_noise_sigma
        for timestep in scheduler.timesteps:
            scaled = scheduler.scale_model_input(latents, timestep).to(self.unet.dtype)
            prediction = self.unet(
                torch.cat([scaled, scaled]) if guided else scaled,
                timestep,
                encoder_hidden_states=tokens,
                added_cond_kwargs=added,
                return_dict=False,
            )[0].float()
            if guided:
                positive, away = prediction.chunk(2)  # order [condition, negative]: the reverse of stage 1
                prediction = away + guidance * (positive - away)
            latents = scheduler.step(prediction, timestep, latents, return_dict=False)[0]
            if on_step is not None:
                on_step(DecoderStep(prediction, latents))
        return latents

    def time_ids(self, noise: Tensor, rows: int) -> Tensor:
        """(rows, 6) original size, crop corner and target size of every row, pixels."""
        height, width = (side * self.latent_factor for side in noise.shape[-2:])
        ids = tensor_on(noise.device, [ORIGINAL_SIDE, ORIGINAL_SIDE, 0, 0, height, width])
        return ids.expand(rows, -1)

    def pixels(self, latents: Tensor) -> Tensor:
        """(B, 3, H, W) float32 in [0, 1] of latents (B, 4, h, w), one at a time: activations dwarf weights."""
        scaled = (latents / self.vae.config.scaling_factor).to(self.vae.dtype)
        decoded = torch.cat([self.vae.decode(one[None], return_dict=False)[0] for one in scaled])
        return (decoded.float() / 2 + 0.5).clamp(0, 1)


def to_bytes(pixels: Tensor) -> Tensor:
    """(B, 3, H, W) in [0, 1] to (B, H, W, 3) uint8, rounded."""
    return (pixels.permute(0, 2, 3, 1) * 255).round().to(torch.uint8)


def to_images(pixels: Tensor) -> list[Image.Image]:
    """(B, 3, H, W) in [0, 1] to RGB images."""
    return [Image.fromarray(row.numpy(), "RGB") for row in to_bytes(pixels).cpu()]


def vae_dtype(dtype: torch.dtype) -> torch.dtype:
    """Dtype of the autoencoder in a model of ``dtype``: it overflows in float16."""
    return torch.float32 if dtype == torch.float16 else dtype
