"""The tiny unified model: one causal transformer that reads pictures, reads and writes words, and draws.

A picture enters as 16 vision tokens (one per 8 x 8 cell, full attention among them) and leaves in one of two ways,
both by the same trunk: as 16 codes of a 64-entry patch codebook, one after the other, or as 16 latent vectors moved
from noise by a rectified flow (Liu et al. 2022) and snapped to the nearest codebook entry, as the decoder of a
vector-quantised autoencoder does.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaModel

GRID = 4
CELLS = GRID * GRID
PIXELS = 32
CODES = 64


@dataclass(frozen=True)
class TinyConfig:
    """Sizes of the model. ``latent`` is the width of a flow latent per cell, ``embedding`` that of the shared space."""

    words: int
    width: int = 128
    layers: int = 4
    heads: int = 4
    intermediate: int = 256
    latent: int = 16
    embedding: int = 64


class Stem(nn.Module):
    """(n, 3, 32, 32) pixels in [-1, 1] -> (n, 16, width), one vector per cell."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 32, 4, stride=2, padding=1),
            nn.GELU(),
            nn.Conv2d(32, 64, 4, stride=2, padding=1),
            nn.GELU(),
            nn.Conv2d(64, width, 2, stride=2),
        )

    def forward(self, pixels: Tensor) -> Tensor:
        """See the class."""
        features: Tensor = self.layers(pixels)
        return features.flatten(2).transpose(1, 2)


class TinyModel(nn.Module):
    """Parts of the model; how they are put together is in ``causal``, ``drawing`` and ``flow``.

    Args:
        config: sizes.
        codebook: (64, 8, 8, 3) uint8 RGB patches; zeros until a checkpoint is loaded.
    """

    codebook: Tensor
    latents: Tensor

    def __init__(self, config: TinyConfig, codebook: Tensor | None = None) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.trunk = LlamaModel(
            LlamaConfig(
                vocab_size=config.words,
                hidden_size=width,
                intermediate_size=config.intermediate,
                num_hidden_layers=config.layers,
                num_attention_heads=config.heads,
                max_position_embeddings=512,
                attn_implementation="sdpa",
                use_cache=False,
            )
        )
        self.stem = Stem(width)
        self.rows = nn.Parameter(torch.randn(GRID, width) * 0.05)
        self.columns = nn.Parameter(torch.randn(GRID, width) * 0.05)
        self.code_embedding = nn.Embedding(CODES, width)
        self.word_head = nn.Linear(width, config.words, bias=False)
        self.code_head = nn.Linear(width, CODES, bias=False)
        self.embed_head = nn.Linear(width, config.embedding, bias=False)
        self.flow_in = nn.Linear(config.latent, width)
        self.flow_time = nn.Sequential(nn.Linear(32, width), nn.SiLU(), nn.Linear(width, width))
        self.flow_out = nn.Linear(width, config.latent)
        patches = torch.zeros(CODES, 8, 8, 3, dtype=torch.uint8) if codebook is None else codebook
        self.register_buffer("codebook", patches)
        self.register_buffer("latents", torch.zeros(CODES, config.latent))

    def cell_positions(self) -> Tensor:
        """(16, width) what the model adds to a token to say which cell it is about."""
        return (self.rows[:, None] + self.columns[None, :]).flatten(0, 1)

    def see(self, pixels: Tensor) -> Tensor:
        """(n, 3, 32, 32) pixels in [0, 1] -> (n, 16, width) vision tokens."""
        tokens: Tensor = self.stem(pixels * 2 - 1)
        return tokens + self.cell_positions()

    def run(self, embeds: Tensor, mask: Tensor, positions: Tensor) -> Tensor:
        """The trunk without cache: embeds (B, L, width), mask (B, 1, L, L) bool, positions (B, L) -> (B, L, width)."""
        hidden: Tensor = self.trunk(
            inputs_embeds=embeds, attention_mask=mask, position_ids=positions, use_cache=False
        ).last_hidden_state
        return hidden

    def pictures(self, codes: Tensor) -> Tensor:
        """(n, 16) codes -> (n, 32, 32, 3) uint8 RGB."""
        grid = self.codebook[codes].reshape(-1, GRID, GRID, 8, 8, 3)
        return grid.permute(0, 1, 3, 2, 4, 5).reshape(-1, PIXELS, PIXELS, 3)
