"""SigLIP with a linear patch embedding and looked-up positions, and the connector into the language model.

Blocks and final norm are transformers' own; the embedding step is here because pictures keep their aspect ratio.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu
from torch.nn.utils.rnn import pad_sequence
from transformers import SiglipVisionConfig
from transformers.models.siglip.modeling_siglip import SiglipEncoder

from asg_core.backbones.devices import tensor_on


def grid_positions(rows: int, columns: int, side: int, device: torch.device) -> Tensor:
    """(rows * columns,) long, row-major: where each cell of a grid is in a table of ``side`` x ``side`` positions.

    Grids sit in the table's top left corner; positions are never interpolated.
    """
    down, across = torch.arange(rows, device=device), torch.arange(columns, device=device)
    return (down[:, None] * side + across).flatten()


class PositionTable(nn.Module):
    """A stored table of sine-cosine positions, (side * side, width), row-major, addressed from the top left corner."""

    def __init__(self, side: int, width: int) -> None:
        super().__init__()
        self.side = side
        self.pos_embed = nn.Parameter(torch.empty(side * side, width))

    def forward(self, rows: int, columns: int) -> Tensor:
        """(rows * columns, width) for a grid of that size, row-major."""
        return self.pos_embed[grid_positions(rows, columns, self.side, self.pos_embed.device)]


class PatchEmbeddings(nn.Module):
    """(n, 3 p p) patch vectors of one image -> (n, width)."""

    def __init__(self, config: SiglipVisionConfig, side: int) -> None:
        super().__init__()
        self.side = side
        self.patch_embedding = nn.Linear(config.num_channels * config.patch_size**2, config.hidden_size)
        self.position_embedding = nn.Embedding(side * side, config.hidden_size)

    def forward(self, patches: Tensor, columns: int) -> Tensor:
        """``patches`` row-major, ``columns`` per row."""
        index = grid_positions(len(patches) // columns, columns, self.side, patches.device)
        embedded: Tensor = self.patch_embedding(patches) + self.position_embedding(index)
        return embedded


class VisionTransformer(nn.Module):
    """Pictures of any size within the position table -> one vector per patch, after the final norm."""

    def __init__(self, config: SiglipVisionConfig, side: int) -> None:
        super().__init__()
        self.embeddings = PatchEmbeddings(config, side)
        self.encoder = SiglipEncoder(config)
        self.post_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, patches: Sequence[Tensor], columns: Sequence[int]) -> list[Tensor]:
        """Several images as one padded batch; no image sees another.

        Args:
            patches: per image (n_i, 3 p p), row-major.
            columns: patches per row of each image.

        Returns:
            Per image (n_i, width).
        """
        embedded = [self.embeddings(p, c) for p, c in zip(patches, columns, strict=True)]
        lengths = [len(e) for e in embedded]
        x = pad_sequence(embedded, batch_first=True)
        mask = None
        if len(set(lengths)) > 1:
            real = torch.arange(x.shape[1], device=x.device) < tensor_on(x.device, lengths)[:, None]
            mask = real[:, None, None, :]
        features = self.post_layernorm(self.encoder(inputs_embeds=x, attention_mask=mask).last_hidden_state)
        return [row[:length] for row, length in zip(features, lengths, strict=True)]


class VisionModel(nn.Module):
    """Nests the tower as the released names do (``vit_model.vision_model``)."""

    def __init__(self, config: SiglipVisionConfig, side: int) -> None:
        super().__init__()
        self.vision_model = VisionTransformer(config, side)


class Connector(nn.Module):
    """Vision width -> language width: linear, tanh-approximated GELU, linear."""

    def __init__(self, vision_width: int, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(vision_width, width)
        self.fc2 = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(n, vision width) -> (n, width)."""
        projected: Tensor = self.fc2(gelu(self.fc1(x), approximate="tanh"))
        return projected
