"""The EVA-CLIP-E tower: a post-norm vision transformer whose patch features are the flow network's target space.

``x += LN(attn(x)); x += LN(mlp(x))``, exact GELU, no final norm; features are taken after the last block, CLS dropped.
Only losses on real images need it: candidates are stored as the features that were sampled.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from asg_blip3o.config import EvaDims
from asg_core.errors import ConfigError

EPS = 1e-6


class PatchEmbed(nn.Module):
    """Square patches to tokens, row-major."""

    def __init__(self, dims: EvaDims) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, dims.width, dims.patch, dims.patch)

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 3, S, S) to (B, S/patch * S/patch, width)."""
        tokens: Tensor = self.proj(pixels)
        return tokens.flatten(2).transpose(1, 2)


class Attention(nn.Module):
    """Full self-attention with one fused, biased projection."""

    def __init__(self, width: int, head_width: int) -> None:
        super().__init__()
        self.head_width = head_width
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, width) to the same shape."""
        batch, length, width = x.shape
        heads = self.qkv(x).view(batch, length, 3, -1, self.head_width).permute(2, 0, 3, 1, 4)  # (3, B, H, L, head)
        mixed = F.scaled_dot_product_attention(heads[0], heads[1], heads[2])
        out: Tensor = self.proj(mixed.transpose(1, 2).reshape(batch, length, width))
        return out


class Mlp(nn.Module):
    """Two layers with exact GELU between."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, width) to the same shape."""
        out: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return out


class Block(nn.Module):
    """One post-norm block: each branch is normed before it is added."""

    def __init__(self, dims: EvaDims, head_width: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dims.width, eps=EPS)
        self.attn = Attention(dims.width, head_width)
        self.norm2 = nn.LayerNorm(dims.width, eps=EPS)
        self.mlp = Mlp(dims.width, dims.mlp)

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, width) to the same shape."""
        x = x + self.norm1(self.attn(x))
        out: Tensor = x + self.norm2(self.mlp(x))
        return out


class EvaTower(nn.Module):
    """The tower. Names of its parameters are those of the released file without prefix.

    Args:
        dims: from the tensors.
        head_width: width of one attention head; must divide the tower's width.

    Raises:
        ConfigError: ``head_width`` does not divide the width.
    """

    def __init__(self, dims: EvaDims, head_width: int) -> None:
        super().__init__()
        if dims.width % head_width:
            raise ConfigError(
                f"eva_head_width={head_width} does not divide the tower's width {dims.width}",
                "the number of heads is width / head width, and no tensor shows it",
                "set backbone_options.eva_head_width to a divisor (112 in the release)",
            )
        self.dims = dims
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dims.width))
        self.pos_embed = nn.Parameter(torch.zeros(1, dims.patches**2 + 1, dims.width))
        self.patch_embed = PatchEmbed(dims)
        self.blocks = nn.ModuleList(Block(dims, head_width) for _ in range(dims.layers))

    def forward(self, pixels: Tensor) -> Tensor:
        """Patch features (B, patches^2, width) of normalised ``pixels`` (B, 3, S, S)."""
        tokens = self.patch_embed(pixels)
        x = torch.cat([self.cls_token.expand(len(tokens), -1, -1), tokens], dim=1) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        return x[:, 1:]


def pool_features(features: Tensor, stride: int) -> Tensor:
    """Average-pool patch features (B, P*P, C) over ``stride`` x ``stride`` patches: (B, C, P/stride, P/stride)."""
    batch, count, channels = features.shape
    side = int(count**0.5)
    return F.avg_pool2d(features.transpose(1, 2).reshape(batch, channels, side, side), stride)
