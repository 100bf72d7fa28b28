"""The sizes of a checkpoint, read from its configuration and, for the image parts, from its tensor shapes.

The released ``config.json`` says nothing about the image decoder and the VAE, so their sizes are inferred.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from asg_core.errors import WeightsError

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class DecoderShape:
    """Sizes of the image decoder.

    Attributes:
        width: C, hidden width.
        heads: attention heads.
        chunks: blocks per chunk, in order; only the released names know of chunks.
        ffn_width: hidden width of the feed-forward.
        bits: bits per cell.
        levels: rows of the level embedding, an upper bound on scales.
        uncond_rows: rows of the unconditional context, an upper bound on guided prompt tokens.
        pool_heads: heads of the start token's pooling, whose attention is always 1.
    """

    width: int
    heads: int
    chunks: tuple[int, ...]
    ffn_width: int
    bits: int
    levels: int
    uncond_rows: int
    pool_heads: int

    @property
    def depth(self) -> int:
        """Blocks in all."""
        return sum(self.chunks)


@dataclass(frozen=True)
class VaeShape:
    """Sizes of the VAE: widths per level, finest first, and residual blocks per level of both halves."""

    widths: tuple[int, ...]
    encoder_blocks: int
    decoder_blocks: int
    bits: int


@dataclass(frozen=True)
class GenerationTokens:
    """Ids of the three special tokens of image generation; text roles never sample them."""

    start: int
    end: int
    pad: int


@dataclass(frozen=True)
class Architecture:
    """Everything needed to build the modules."""

    decoder: DecoderShape
    vae: VaeShape
    tokens: GenerationTokens


def infer(config: Mapping[str, Any], shapes: Shapes) -> Architecture:
    """Sizes from ``config.json`` and the shapes of all stored tensors.

    Raises:
        WeightsError: a tensor or a configuration entry that determines a size is missing or makes no sense.
    """
    return Architecture(_decoder(shapes), _vae(shapes), _tokens(config))


def _shape(shapes: Shapes, name: str) -> tuple[int, ...]:
    if len(shapes.get(name, ())) < 2:
        raise WeightsError(
            f"tensor {name} is missing or has no second axis",
            "the sizes of the image modules are read from it",
            "give the complete directory of the released weights",
        )
    return shapes[name]


def _decoder(shapes: Shapes) -> DecoderShape:
    pairs = _indices(shapes, r"vargpt_gen\.block_chunks\.(\d+)\.module\.(\d+)\.")
    sizes = Counter(chunk for chunk, _ in pairs)
    chunks = tuple(sizes[chunk] for chunk in range(1 + max(sizes, default=-1)))
    first = "vargpt_gen.block_chunks.0.module.0"
    return DecoderShape(
        width=_shape(shapes, "vargpt_gen.pos_start")[-1],
        heads=_shape(shapes, f"{first}.sa.scale_mul_1H11")[1],
        chunks=chunks,
        ffn_width=_shape(shapes, f"{first}.ffn.fc1.weight")[0],
        bits=_shape(shapes, "vargpt_gen.word_embed.weight")[1],
        levels=_shape(shapes, "vargpt_gen.lvl_embed.weight")[0],
        uncond_rows=_shape(shapes, "vargpt_gen.cfg_uncond")[0],
        pool_heads=_shape(shapes, "vargpt_gen.text_proj_for_sos.ca.mat_q")[1],
    )


def _vae(shapes: Shapes) -> VaeShape:
    down = _indices(shapes, r"vae_local\.encoder\.down\.(\d+)\.block\.(\d+)\.")
    up = _indices(shapes, r"vae_local\.decoder\.up\.(\d+)\.block\.(\d+)\.")
    widths = tuple(
        _shape(shapes, f"vae_local.encoder.down.{level}.block.0.conv2.conv.weight")[0]
        for level in sorted({level for level, _ in down})
    )
    base = _shape(shapes, "vae_local.encoder.conv_in.conv.weight")[0]
    if not widths or widths[0] != base:
        raise WeightsError(
            f"the VAE's first level has width {widths[:1]} but its input layer {base}",
            "the first width multiplier of a VARGPT VAE is 1",
            "use the released weights",
        )
    return VaeShape(
        widths=widths,
        encoder_blocks=sum(level == 0 for level, _ in down),
        decoder_blocks=sum(level == 0 for level, _ in up),
        bits=_shape(shapes, "vae_local.encoder.conv_out.conv.weight")[0],
    )


def _indices(shapes: Shapes, pattern: str) -> set[tuple[int, int]]:
    matches = (re.match(pattern, name) for name in shapes)
    return {(int(match[1]), int(match[2])) for match in matches if match}


def _tokens(config: Mapping[str, Any]) -> GenerationTokens:
    special = config.get("special_tokens")
    names = ("image_gen_start_token_id", "image_gen_end_token_id", "image_gen_pad_token_id")
    if not isinstance(special, Mapping) or any(not isinstance(special.get(name), int) for name in names):
        raise WeightsError(
            "config.json has no complete special_tokens section",
            f"VARGPT needs {', '.join(names)}",
            "use the config.json of the released weights",
        )
    start, end, pad = (int(special[name]) for name in names)
    return GenerationTokens(start, end, pad)
