"""The whole model as one tree of modules whose names, but for the autoencoder, are the released tensor names.

Built without its generation half it plays Proposer and Solver only, in 16 GB of bfloat16 instead of 29. The layers of
the generation expert exist even then, with placeholder weights, to carry the Generator's adapter through such a run.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from asg_bagel.config import BagelConfig
from asg_bagel.modeling_language import LanguageModel
from asg_bagel.modeling_vae import build_vae
from asg_bagel.modeling_vision import Connector, PositionTable, VisionModel

TIME_FEATURES = 256


class TimeEmbedder(nn.Module):
    """Flow time in [0, 1], not multiplied by 1000, -> language width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(TIME_FEATURES, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, time: Tensor) -> Tensor:
        """(B,) float32 -> (B, width). Cosines first, then sines, at frequencies 10000^(-k/128)."""
        half = TIME_FEATURES // 2
        exponents = torch.arange(half, dtype=torch.float32, device=time.device) / half
        angles = time.float()[:, None] * torch.exp(-math.log(10000.0) * exponents)
        features = torch.cat([angles.cos(), angles.sin()], dim=-1)
        weight = self.mlp.get_parameter("0.weight")
        embedded: Tensor = self.mlp(features.to(weight.dtype))
        return embedded


class Bagel(nn.Module):
    """All modules of the release.

    Args:
        config: sizes.
        generation: False leaves out the latent projections and the autoencoder.
    """

    def __init__(self, config: BagelConfig, *, generation: bool = True) -> None:
        super().__init__()
        self.config = config
        self.generation = generation
        width = config.llm.hidden_size
        self.language_model = LanguageModel(config.llm)
        self.vit_model = VisionModel(config.vision, config.vision_side)
        self.connector = Connector(config.vision.hidden_size, width)
        self.vit_pos_embed = PositionTable(config.vision_side, width)
        if generation:
            self.time_embedder = TimeEmbedder(width)
            self.vae2llm = nn.Linear(config.latent_width, width)
            self.llm2vae = nn.Linear(width, config.latent_width)
            self.latent_pos_embed = PositionTable(config.latent_side, width)
            self.vae = build_vae(config.vae)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.vit_pos_embed.pos_embed.device

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the frozen weights."""
        return self.vit_pos_embed.pos_embed.dtype
