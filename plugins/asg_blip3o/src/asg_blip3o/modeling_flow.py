"""The flow network: stock Lumina Next-DiT blocks over feature tokens, conditioned on query states."""

from __future__ import annotations

from functools import cache

import torch
from diffusers import LuminaNextDiT2DModel
from diffusers.models.embeddings import PixArtAlphaTextProjection, get_2d_rotary_pos_embed_lumina
from torch import Tensor, nn

from asg_blip3o.config import FlowDims
from asg_core.backbones.devices import moved_to


class FlowNetwork(nn.Module):
    """Velocity field over (C, grid, grid) features.

    Args:
        dims: from the tensors.
        grid: side of the feature grid.
    """

    def __init__(self, dims: FlowDims, grid: int) -> None:
        super().__init__()
        self.dims, self.grid = dims, grid
        self.caption_projection = PixArtAlphaTextProjection(dims.condition, dims.context)
        inner = int(8 * dims.width / 3)
        self.dit = LuminaNextDiT2DModel(
            sample_size=grid,
            patch_size=1,
            in_channels=dims.channels,
            hidden_size=dims.width,
            num_layers=dims.layers,
            num_attention_heads=dims.heads,
            num_kv_heads=dims.kv_heads,
            # The stock class rounds multiplier * 8/3 * width up to a multiple: this pair gives the stored width.
            multiple_of=dims.ffn,
            ffn_dim_multiplier=min(1.0, dims.ffn / inner),
            norm_eps=1e-5,
            learn_sigma=False,
            qk_norm=True,
            cross_attention_dim=dims.context,
        )

    @property
    def sample_shape(self) -> tuple[int, int, int]:
        """(C, grid, grid) of one sample."""
        return self.dims.channels, self.grid, self.grid

    def context(self, queries: Tensor) -> Tensor:
        """Query states (B, n, condition) to cross-attention context (B, n, context); independent of the timestep."""
        projected: Tensor = self.caption_projection(queries.to(self.caption_projection.linear_2.weight.dtype))
        return projected

    def forward(self, x: Tensor, timestep: Tensor, context: Tensor) -> Tensor:
        """Velocity (B, C, g, g), float32.

        Args:
            x: (B, C, g, g) noisy features.
            timestep: (B,) in [0, 1000]; 1000 is pure noise (not reversed as in Lumina itself).
            context: (B, n, context) from :meth:`context`.
        """
        velocity: Tensor = self.dit(
            x.to(context.dtype),
            timestep=timestep,
            encoder_hidden_states=context,
            encoder_mask=context.new_ones(context.shape[:2], dtype=torch.int32),
            image_rotary_emb=rotary_table(self.dims.width // self.dims.heads, self.grid, x.device),
            cross_attention_kwargs={},
            return_dict=False,
        )[0]
        return velocity.float()


@cache
def rotary_table(head_width: int, grid: int, device: torch.device) -> Tensor:
    """2-D rotary factors (grid, grid, head_width / 2), complex64.

    Computed when first used: as an attribute of a module built on the meta device it would stay there.
    """
    with torch.inference_mode(False):
        return moved_to(device, get_2d_rotary_pos_embed_lumina(head_width, grid, grid))
