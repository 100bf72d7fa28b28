"""The image decoder: transformer blocks over the cells of all scales, conditioned by AdaLN and cross-attention, with
one binary classifier per bit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from asg_core.backbones.devices import moved_to
from asg_vargpt.config import DecoderShape
from asg_vargpt.modeling_attention import ConstantPool, CrossAttention, Rope, ScaleCache, SelfAttention

EPS = 1e-6


def _modulated(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], eps=EPS) * (scale + 1) + shift


@dataclass(frozen=True, eq=False)
class Condition:
    """What is the same for every position of an image; the prompt does not enter here.

    Attributes:
        vector: (B, C), also the first scale's input before ``pos_start``.
        modulation: (B, 1, 6, C): gamma1, gamma2, scale1, scale2, shift1, shift2, to which each block adds its own.
        head: scale and shift (B, 1, C) each, of the last normalisation.
    """

    vector: Tensor
    modulation: Tensor
    head: tuple[Tensor, Tensor]


@dataclass(frozen=True, eq=False)
class Context:
    """Cross-attention keys and values of the prompt, one pair per block, computed once per image.

    Attributes:
        layers: (keys, values), each (B, heads, n, head_dim).
        mask: (B, 1, 1, n) bool, False at padding; None if there is none.
    """

    layers: tuple[tuple[Tensor, Tensor], ...]
    mask: Tensor | None


class FeedForward(nn.Module):
    """Linear, GELU (tanh), Linear."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, C) -> (B, L, C)."""
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))  # type: ignore[no-any-return]


class Block(nn.Module):
    """Gated self-attention, ungated cross-attention, gated feed-forward."""

    def __init__(self, shape: DecoderShape) -> None:
        super().__init__()
        self.ada_gss = nn.Parameter(torch.zeros(1, 1, 6, shape.width))
        self.sa = SelfAttention(shape.width, shape.heads)
        self.ca_norm = nn.LayerNorm(shape.width, eps=EPS)
        self.ca = CrossAttention(shape.width, shape.heads)
        self.ffn = FeedForward(shape.width, shape.ffn_width)

    def forward(
        self,
        x: Tensor,
        modulation: Tensor,
        context: tuple[Tensor, Tensor],
        context_mask: Tensor | None,
        rope: Rope,
        mask: Tensor | None,
        cache: ScaleCache | None,
        index: int,
    ) -> Tensor:
        """(B, L, C) -> (B, L, C); ``modulation`` as in :class:`Condition`, ``index`` names the block in ``cache``."""
        gamma1, gamma2, scale1, scale2, shift1, shift2 = (modulation + self.ada_gss).unbind(2)
        x = x + self.sa(_modulated(x, scale1, shift1), rope, mask, cache, index) * gamma1
        x = x + self.ca(self.ca_norm(x), *context, context_mask)
        return x + self.ffn(_modulated(x, scale2, shift2)) * gamma2  # type: ignore[no-any-return]


class ImageDecoder(nn.Module):
    """32 blocks at full size; parameters named as in the released ``vargpt_gen`` but for the flat list of blocks."""

    def __init__(self, shape: DecoderShape) -> None:
        super().__init__()
        width = shape.width
        self.shape = shape
        self.cfg_uncond = nn.Parameter(torch.zeros(shape.uncond_rows, width))
        self.pos_start = nn.Parameter(torch.zeros(1, 1, width))
        self.text_norm = nn.RMSNorm(width, eps=EPS)
        self.text_proj_for_sos = nn.ModuleDict({"ca": ConstantPool(width)})
        self.lvl_embed = nn.Embedding(shape.levels, width)
        self.word_embed = nn.Linear(shape.bits, width)
        self.shared_ada_lin = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))
        self.head_nm = nn.ModuleDict({"ada_lin": nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))})
        self.head = nn.Linear(width, 2 * shape.bits)
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.depth))

    def condition(self, start: Tensor) -> Condition:
        """Start vectors (B, C): the learned one of the start token, or the first unconditional row."""
        pooled = self.text_proj_for_sos["ca"](self.text_norm(start))
        scale, shift = self.head_nm["ada_lin"](pooled).unsqueeze(1).chunk(2, dim=-1)
        modulation = self.shared_ada_lin(pooled).view(-1, 1, 6, self.shape.width)
        return Condition(pooled, modulation, (scale, shift))

    def context(self, rows: Tensor, mask: Tensor | None = None) -> Context:
        """Prepare context rows (B, n, C) for every block."""
        layers = tuple(block.ca.keys_values(rows) for block in self._blocks())
        return Context(layers, None if mask is None else mask[:, None, None, :])

    def forward(
        self,
        x: Tensor,
        levels: Tensor,
        condition: Condition,
        context: Context,
        rope: Rope,
        mask: Tensor | None = None,
        cache: ScaleCache | None = None,
    ) -> Tensor:
        """Bit logits (B, L, bits, 2) float32, class index = bit value.

        Args:
            x: (B, L, C) from the output projector.
            levels: (L,) scale index of each position.
            condition: of the image.
            context: of the prompt.
            rope: of these L positions.
            mask: (L, L) bool, for a whole image at once.
            cache: of earlier scales, when drawing scale by scale; extended.
        """
        x = x + self.lvl_embed(levels)
        for index, block in enumerate(self._blocks()):
            x = block(x, condition.modulation, context.layers[index], context.mask, rope, mask, cache, index)
        logits = self.head(_modulated(x, *condition.head))
        return logits.float().unflatten(-1, (-1, 2))  # type: ignore[no-any-return]

    def _blocks(self) -> list[Block]:
        return list(self.blocks)  # type: ignore[arg-type]


def scale_mask(lengths: Sequence[int], device: torch.device) -> Tensor:
    """(L, L) bool: a position sees its own scale and all earlier ones."""
    levels = level_of_positions(lengths, device)
    return levels[:, None] >= levels[None, :]


def level_of_positions(lengths: Sequence[int], device: torch.device) -> Tensor:
    """(L,) long: scale index of every position."""
    return moved_to(device, torch.repeat_interleave(torch.tensor(list(lengths))))
