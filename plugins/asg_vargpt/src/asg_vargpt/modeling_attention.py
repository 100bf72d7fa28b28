"""The two attentions of the image decoder: cosine self-attention over scales, and cross-attention to the prompt.

Every projection is *called as a module* and its separate bias added afterwards, so that adapters on it take part.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from asg_core.backbones.devices import moved_to
from asg_vargpt.scales import Schedule

MAX_LOG_SCALE = math.log(100.0)
ROPE_THETA = 10000.0


@dataclass(frozen=True, eq=False)
class Rope:
    """Cosines and sines of a run of positions, float32, each (L, head_dim / 2)."""

    cos: Tensor
    sin: Tensor

    def part(self, start: int, stop: int) -> Rope:
        """Positions start to stop."""
        return Rope(self.cos[start:stop], self.sin[start:stop])

    def rotate(self, x: Tensor) -> Tensor:
        """Rotate the pairs (2j, 2j + 1) of (B, heads, L, head_dim) float32."""
        even, odd = x[..., 0::2], x[..., 1::2]
        return torch.stack((even * self.cos - odd * self.sin, even * self.sin + odd * self.cos), dim=-1).flatten(-2)


def rope_of(schedule: Schedule, head_dim: int, device: torch.device) -> Rope:
    """Rotary angles of all positions of an image; the first half of the angles turns with the row, the second with the
    column."""
    half = head_dim // 2
    frequencies = 1.0 / ROPE_THETA ** (torch.arange(0, half, 2, dtype=torch.float32) / half)
    cells = [cell for scale in range(len(schedule.grids)) for cell in schedule.rows_and_columns(scale)]
    angles = moved_to(device, (torch.tensor(cells, dtype=torch.float32)[..., None] * frequencies).flatten(1))
    return Rope(angles.cos(), angles.sin())


@dataclass
class ScaleCache:
    """Self-attention keys and values of the scales drawn so far, one pair per block."""

    layers: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def extend(self, block: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Append one scale and return everything up to it."""
        if block in self.layers:
            old_keys, old_values = self.layers[block]
            keys, values = torch.cat((old_keys, keys), dim=2), torch.cat((old_values, values), dim=2)
        self.layers[block] = (keys, values)
        return keys, values


class SelfAttention(nn.Module):
    """Multi-head attention on unit-length queries and keys, with a learned temperature per head and 2-D positions."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.mat_qkv = nn.Linear(width, 3 * width, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(width))
        self.v_bias = nn.Parameter(torch.zeros(width))
        self.zero_k_bias = nn.Buffer(torch.zeros(width))
        self.scale_mul_1H11 = nn.Parameter(torch.full((1, heads, 1, 1), math.log(4.0)))
        self.proj = nn.Linear(width, width)

    def forward(
        self, x: Tensor, rope: Rope, mask: Tensor | None, cache: ScaleCache | None = None, block: int = 0
    ) -> Tensor:
        """(B, L, C) -> (B, L, C). ``mask`` (L, L) bool is for a whole image at once; with ``cache`` all earlier scales
        and the whole current one are visible."""
        batch, length, width = x.shape
        qkv = self.mat_qkv(x) + torch.cat((self.q_bias, self.zero_k_bias, self.v_bias))
        q, k, v = qkv.view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        scale = self.scale_mul_1H11.float().clamp_max(MAX_LOG_SCALE).exp()
        q = rope.rotate(F.normalize(q.float(), dim=-1, eps=1e-12) * scale).to(v.dtype)
        k = rope.rotate(F.normalize(k.float(), dim=-1, eps=1e-12)).to(v.dtype)
        if cache is not None:
            k, v = cache.extend(block, k, v)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=1.0)
        return self.proj(out.transpose(1, 2).reshape(batch, length, width))  # type: ignore[no-any-return]


class CrossAttention(nn.Module):
    """Multi-head attention to the prompt's hidden states, without positions."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.mat_q = nn.Linear(width, width)
        self.mat_kv = nn.Linear(width, 2 * width, bias=False)
        self.v_bias = nn.Parameter(torch.zeros(width))
        self.zero_k_bias = nn.Buffer(torch.zeros(width))
        self.proj = nn.Linear(width, width)

    def keys_values(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """Context (B, n, C) -> keys and values (B, heads, n, head_dim); they hold for all scales of an image."""
        batch, length, _ = context.shape
        kv = self.mat_kv(context) + torch.cat((self.zero_k_bias, self.v_bias))
        k, v = kv.view(batch, length, 2, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        return k, v

    def forward(self, x: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
        """(B, L, C) -> (B, L, C). ``mask`` (B, 1, 1, n) bool hides padding of the context."""
        batch, length, width = x.shape
        q = self.mat_q(x).view(batch, length, self.heads, -1).transpose(1, 2)
        out = F.scaled_dot_product_attention(q, keys, values, attn_mask=mask)
        return self.proj(out.transpose(1, 2).reshape(batch, length, width))  # type: ignore[no-any-return]


class ConstantPool(nn.Module):
    """Attentive pooling over a single vector: its weight is 1, so only the value path is left."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mat_kv = nn.Linear(width, 2 * width, bias=False)
        self.v_bias = nn.Parameter(torch.zeros(width))
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C) -> (B, C)."""
        return self.proj(self.mat_kv(x).chunk(2, dim=-1)[1] + self.v_bias)  # type: ignore[no-any-return]
