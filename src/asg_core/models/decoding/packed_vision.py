"""Vision towers of transformers that read pictures of all sizes as one row of patches: Qwen2-VL's and Qwen2.5-VL's.

Called plainly they fetch the bounds of pictures and windows from the device in every block, and attend window after
window. Here bounds stay on the host, windows are laid out by length, and what is equally long attends as one batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface
from transformers.vision_utils import get_vision_position_ids, get_vision_window_index

from asg_core.backbones.devices import moved_to

Grid = tuple[int, int]
"""Rows and columns of patches of a picture, before the tower merges them."""

_ATTENTION = "asg_flash_packed"
"""transformers tells an attention the bounds only if there is "flash" in its name."""


@dataclass(frozen=True, eq=False)
class _Scattered:
    """Pictures in a row laid out by window: (pictures + 1,) bounds on the CPU, as the tower gives them to blocks that
    attend over whole pictures; (n,) places of the row picture after picture, on the device, and their inverse."""

    bounds: Tensor
    order: Tensor
    back: Tensor


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: None,
    *,
    scaling: float,
    cu_seq_lens_q: Tensor,
    scattered: _Scattered | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Full attention within each of the spans that follow one another in a row, a batch for each run of equal lengths.

    (1, H, n, d) states and the (spans + 1,) bounds of the spans, on the CPU -> (1, n, H, d), and None for the weights.
    ``scattered`` pictures are no spans of this row; they are gathered first. transformers gives more to all attentions
    than is used here.
    """
    states = [query[0], key[0], value[0]]
    gathered = scattered if scattered is not None and torch.equal(scattered.bounds, cu_seq_lens_q) else None
    if gathered is not None:
        states = [state.index_select(1, gathered.order) for state in states]
    mixed, start = [], 0
    for length, run in groupby(cu_seq_lens_q.diff().tolist()):
        count = len(list(run))
        span = slice(start, start := start + count * length)
        q, k, v = (state[:, span].reshape(len(state), count, length, -1).transpose(0, 1) for state in states)
        mixed.append(F.scaled_dot_product_attention(q, k, v, scale=scaling).transpose(1, 2).flatten(0, 1))
    row = torch.cat(mixed)
    return (row if gathered is None else row.index_select(0, gathered.back))[None], None


AttentionInterface.register(_ATTENTION, _attend)


class PackedVision:
    """Runs a vision tower on pictures; on an accelerator nothing waits for it.

    Args:
        tower: ``visual`` of a Qwen2-VL or Qwen2.5-VL model, frozen. Its attention is replaced, here and wherever else
            the tower is called.
    """

    def __init__(self, tower: Any) -> None:
        self._tower = tower
        tower.config._attn_implementation = _ATTENTION

    def __call__(self, patches: Sequence[Tensor], grids: Sequence[Grid]) -> list[Tensor]:
        """Language-model tokens of pictures, in one pass.

        Args:
            patches: of each picture (rows * columns, values), CPU, in the order of Qwen2-VL's processor.
            grids: of each picture; sides are multiples of the tower's merge size.

        Returns:
            Of each picture (tokens, D) in row-major order, in the tower's dtype and on its device.
        """
        tower = self._tower
        device = tower.device
        order = sorted(range(len(grids)), key=lambda i: len(patches[i]))  # equal lengths side by side
        sizes = torch.tensor([(1, *grids[i]) for i in order])
        pixels = moved_to(device, torch.cat([patches[i] for i in order]), tower.dtype)
        merge = int(tower.spatial_merge_size)
        tokens = tower(
            pixels,
            grid_thw=sizes,
            position_ids=moved_to(device, get_vision_position_ids(sizes, merge)),
            **self._bounds(sizes, device),
        ).pooler_output
        parts = tokens.split((sizes.prod(1) // merge**2).tolist())
        return [part for _, part in sorted(zip(order, parts, strict=True), key=lambda pair: pair[0])]

    def _bounds(self, sizes: Tensor, device: torch.device) -> dict[str, Any]:
        """What the tower would compute on the device: bounds of pictures and, if it has them, of windows."""
        tower = self._tower
        pictures = _bounds_of(sizes.prod(1))
        if not hasattr(tower, "window_size"):
            return {"cu_seqlens": pictures}
        unit = int(tower.spatial_merge_size) ** 2
        index, bounds = get_vision_window_index(sizes, tower.spatial_merge_size, tower.window_size, tower.patch_size)
        windows = sorted(index.split((bounds.diff() // unit).tolist()), key=len)
        index = torch.cat(windows)
        scattered = None
        owners = torch.repeat_interleave(sizes.prod(1) // unit)[index]
        if not torch.equal(owners, owners.sort().values):
            inside = torch.arange(unit)
            order, back = ((places[:, None] * unit + inside).flatten() for places in (index.argsort(), index))
            scattered = _Scattered(pictures, moved_to(device, order), moved_to(device, back))
        return {
            "cu_seqlens": pictures,
            "window_index": moved_to(device, index),
            "cu_window_seqlens": _bounds_of(torch.tensor([len(window) * unit for window in windows])),
            "scattered": scattered,
        }


def _bounds_of(lengths: Tensor) -> Tensor:
    """(k,) lengths -> (k + 1,) int32, where each starts and the last ends."""
    return F.pad(lengths.cumsum(0, dtype=torch.int32), (1, 0))
