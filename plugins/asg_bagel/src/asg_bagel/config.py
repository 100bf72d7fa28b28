"""Sizes of a BAGEL checkpoint, read from its own files.

``llm_config.json`` and ``vit_config.json`` are those of stock Qwen2.5 and SigLIP. What BAGEL changes about them (query
and key norms, two experts, one vision layer fewer, no vision head) is in no file; the code imposes it.
``config.json`` is not trusted for the two position grids, which the tables' own row counts give.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

from transformers import Qwen2Config, SiglipVisionConfig

from asg_core.errors import WeightsError


@dataclass(frozen=True)
class VaeConfig:
    """The autoencoder. Defaults are FLUX.1's; a checkpoint's ``config.json`` may override them (``vae_config``)."""

    in_channels: int = 3
    out_ch: int = 3
    ch: int = 128
    ch_mult: tuple[int, ...] = (1, 2, 4, 4)
    num_res_blocks: int = 2
    z_channels: int = 16
    scale_factor: float = 0.3611
    shift_factor: float = 0.1159

    @property
    def downsample(self) -> int:
        """Pixels per latent cell along one axis."""
        return int(2 ** (len(self.ch_mult) - 1))


@dataclass(frozen=True)
class BagelConfig:
    """All dimensions of one checkpoint.

    Attributes:
        llm: language model; both experts have these sizes.
        vision: SigLIP with the layers that BAGEL uses (one fewer than the file says).
        vae: autoencoder.
        vision_side: rows = columns of the vision position table, in patches; 70 in the release.
        latent_side: rows = columns of the latent position table, in latent tokens; 64 in the release.
        latent_patch: latent cells per latent token along one axis; 2 in the release.
    """

    llm: Qwen2Config
    vision: SiglipVisionConfig
    vae: VaeConfig
    vision_side: int
    latent_side: int
    latent_patch: int

    @property
    def head_dim(self) -> int:
        """Width of one attention head of the language model."""
        return int(self.llm.hidden_size // self.llm.num_attention_heads)

    @property
    def latent_width(self) -> int:
        """Numbers per latent token."""
        return self.latent_patch**2 * self.vae.z_channels

    @property
    def image_stride(self) -> int:
        """Pixels per latent token along one axis; image sides are multiples of it."""
        return self.vae.downsample * self.latent_patch

    @property
    def max_image_size(self) -> int:
        """Longest image side in pixels that the latent position table covers."""
        return self.latent_side * self.image_stride

    @property
    def max_vision_size(self) -> int:
        """Longest image side in pixels that the vision position table covers."""
        return int(self.vision_side * self.vision.patch_size)


def build_config(
    llm: dict[str, Any],
    vision: dict[str, Any],
    vae: dict[str, Any],
    *,
    vision_rows: int,
    latent_rows: int,
    latent_width: int,
) -> BagelConfig:
    """Put the parts together.

    Args:
        llm: contents of ``llm_config.json``.
        vision: contents of ``vit_config.json``.
        vae: overrides of :class:`VaeConfig`; keys it does not have are ignored, as the release carries derived ones.
        vision_rows: rows of ``vit_pos_embed``.
        latent_rows: rows of ``latent_pos_embed``.
        latent_width: input features of ``vae2llm``.

    Raises:
        WeightsError: a table is not square, or the latent width is no square multiple of the latent channels.
    """
    known = {field.name for field in fields(VaeConfig)}
    given: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in vae.items() if key in known
    }
    vae_config = VaeConfig(**given)
    vision_config = SiglipVisionConfig(
        **{**vision, "num_hidden_layers": vision["num_hidden_layers"] - 1, "vision_use_head": False}
    )
    llm_config = Qwen2Config(**{**llm, "tie_word_embeddings": False})
    for config in (vision_config, llm_config):
        config._attn_implementation = "sdpa"
    return BagelConfig(
        llm=llm_config,
        vision=vision_config,
        vae=vae_config,
        vision_side=_root(vision_rows, "vit_pos_embed.pos_embed"),
        latent_side=_root(latent_rows, "latent_pos_embed.pos_embed"),
        latent_patch=_root(latent_width // vae_config.z_channels, "vae2llm.weight"),
    )


def _root(number: int, name: str) -> int:
    side = math.isqrt(number)
    if side * side != number or side == 0:
        raise WeightsError(
            f"{name} does not describe a square grid",
            f"{number} is not a square number",
            "use an unmodified checkpoint",
        )
    return side
