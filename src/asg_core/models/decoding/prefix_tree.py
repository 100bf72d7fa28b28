"""The prefix tree: distinct images -> distinct prompts per image -> samples, each level one right-padded batch.

Because children are appended behind padded parents, padding ends up in the middle of a row. Nothing is derived from
cache lengths therefore: a dense mask says what is visible, and every row carries its own position counter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from asg_core.backbones.devices import tensor_on
from asg_core.models.decoding.cache_layers import branch, root
from asg_core.models.decoding.causal_model import CausalModel, Segment

if TYPE_CHECKING:
    from transformers import Cache


@dataclass(frozen=True, eq=False)
class Rows:
    """B partial sequences that are continued in parallel; S cached positions, padding included.

    Attributes:
        cache: keys and values of the S positions.
        visible: (B, S) bool, False at padding.
        counter: (B,) long, position of the next token.
        axes: A, number of position axes.
        last: (B, D) hidden state of each row's last real position, which predicts the next token.
    """

    cache: Cache
    visible: Tensor
    counter: Tensor
    axes: int
    last: Tensor

    def fork(self, parents: Sequence[int], *, growing: bool = False) -> Rows:
        """Row i of the result continues row ``parents[i]``; gradients flow back into the parents.

        With ``growing`` the result can be fed token by token, without gradients, and takes the place of these rows:
        they cannot be continued any more.
        """
        if list(parents) == list(range(len(self.counter))):
            return replace(self, cache=branch(self.cache, None, growing=growing))
        index = tensor_on(self.counter.device, parents)
        return Rows(
            cache=branch(self.cache, index, growing=growing),
            visible=self.visible.index_select(0, index),
            counter=self.counter.index_select(0, index),
            axes=self.axes,
            last=self.last.index_select(0, index),
        )


def extend(model: CausalModel, rows: Rows, segments: Sequence[Segment]) -> tuple[Tensor, Rows]:
    """Append one segment to each of B rows, as one right-padded batch; L is the longest.

    Returns:
        (B, L, D) hidden states and the extended rows. ``last`` means nothing for a row whose segment is empty.
    """
    device = rows.counter.device
    lengths = [len(segment.embeds) for segment in segments]
    counter = rows.counter + tensor_on(device, [segment.advance for segment in segments])
    if not any(lengths):
        return rows.last[:, None][:, :0], replace(rows, counter=counter)
    embeds = pad_sequence([segment.embeds for segment in segments], batch_first=True)
    offsets = pad_sequence([segment.positions.T for segment in segments], batch_first=True).permute(2, 0, 1)
    steps = torch.arange(max(lengths), device=device)
    size = tensor_on(device, lengths)
    real = steps < size[:, None]
    full = tensor_on(device, [not segment.causal for segment in segments])
    inside = (steps[:, None] >= steps) | full[:, None, None]
    # A padded query sees itself: without any key it is NaN in some kernels, and NaN values poison rows that mask them.
    itself = torch.eye(len(steps), dtype=torch.bool, device=device)
    inside = (inside & real[:, None, :] & real[:, :, None]) | itself
    past = rows.visible[:, None, :] & real[:, :, None]
    mask = torch.cat([past, inside], dim=-1)[:, None]
    hidden = model.forward(embeds, mask, offsets + rows.counter[None, :, None], rows.cache)
    return hidden, Rows(
        cache=rows.cache,
        visible=torch.cat([rows.visible, real], dim=1),
        counter=counter,
        axes=rows.axes,
        last=hidden[torch.arange(len(segments), device=device), (size - 1).clamp(min=0)],
    )


def prefill_roots(model: CausalModel, segments: Sequence[Segment]) -> Rows:
    """The roots of a tree: prefill one segment per row, at least one row, as one batch."""
    first = segments[0]
    device = first.embeds.device
    rows = Rows(
        cache=root(model.new_cache()),
        visible=torch.zeros(len(segments), 0, dtype=torch.bool, device=device),
        counter=torch.zeros(len(segments), dtype=torch.long, device=device),
        axes=first.positions.shape[0],
        last=first.embeds.new_zeros(len(segments), first.embeds.shape[1]),
    )
    return extend(model, rows, segments)[1]


def append_token(model: CausalModel, rows: Rows, ids: Tensor) -> Rows:
    """Append one token ``ids[i]``, (B,) long, to each of B rows; without gradients, fork them ``growing`` first."""
    visible = torch.cat([rows.visible, rows.visible.new_ones(len(ids), 1)], dim=1)
    positions = rows.counter[None, :, None].expand(rows.axes, -1, -1)
    hidden = model.forward(model.embed_tokens(ids[:, None]), visible[:, None, None], positions, rows.cache)
    return Rows(rows.cache, visible, rows.counter + 1, rows.axes, hidden[:, -1])
