"""Prefilled contexts that images are drawn under: one per prompt, then stacked into the rows of a batch.

Contexts are prefilled one at a time, so that no picture depends on which prompts it is drawn together with.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import DynamicCache

from asg_bagel.modeling_language import Decoder
from asg_core.backbones.devices import tensor_on
from asg_core.models.decoding import Segment


@dataclass(frozen=True, eq=False)
class Context:
    """What has been read so far.

    Attributes:
        layers: per layer keys and values, each (1, H_kv, S, d); no layers before the first segment.
        counter: rotary position of the next segment, which is not S: an image of any size takes one position.
    """

    layers: tuple[tuple[Tensor, Tensor], ...] = ()
    counter: int = 0

    @property
    def length(self) -> int:
        """S, cached tokens."""
        return self.layers[0][0].shape[2] if self.layers else 0


@dataclass(frozen=True, eq=False)
class Rows:
    """Contexts as rows of one batch.

    Attributes:
        cache: right-padded keys and values, or None where all contexts are empty.
        visible: (B, S) bool, False at padding; None when nothing is padded.
        counters: rotary position of each row's next segment.
    """

    cache: DynamicCache | None
    visible: Tensor | None
    counters: tuple[int, ...]


def read(decoder: Decoder, context: Context, segment: Segment, split: int | None = None) -> tuple[Tensor, Context]:
    """Append one segment to a context; the given context stays as it is.

    Args:
        decoder: the language model.
        context: what came before.
        segment: causal text or a bidirectional image.
        split: leading understanding tokens of the segment, None: all.

    Returns:
        (L, D) hidden states of the segment, and the longer context. Gradients flow through both.
    """
    cache = _cache(context.layers)
    length = len(segment.embeds)
    mask = None
    if segment.causal:
        total = context.length + length
        mask = torch.ones(length, total, dtype=torch.bool, device=segment.embeds.device).tril(context.length)[
            None, None
        ]
    hidden = decoder(segment.embeds[None], mask, segment.positions + context.counter, cache, split=split)
    layers = tuple((layer.keys, layer.values) for layer in cache.layers)
    return hidden[0], Context(layers, context.counter + segment.advance)


def stack(contexts: Sequence[Context]) -> Rows:
    """Rows of one batch, in order; contexts may repeat and differ in length."""
    lengths = [context.length for context in contexts]
    counters = tuple(context.counter for context in contexts)
    longest = max(lengths)
    if longest == 0:
        return Rows(None, None, counters)
    template = next(context for context in contexts if context.layers)
    device = template.layers[0][0].device
    layers = []
    for index, (keys, values) in enumerate(template.layers):
        empty = (keys[:, :, :0], values[:, :, :0])
        pairs = [context.layers[index] if context.layers else empty for context in contexts]
        layers.append(tuple(torch.cat([_padded(pair[side], longest) for pair in pairs]) for side in (0, 1)))
    visible = None
    if min(lengths) < longest:
        visible = torch.arange(longest, device=device) < tensor_on(device, lengths)[:, None]
    return Rows(_cache(layers), visible, counters)


def _cache(layers: Sequence[tuple[Tensor, ...]]) -> DynamicCache:
    cache = DynamicCache()
    for index, (keys, values) in enumerate(layers):
        cache.update(keys, values, index)
    return cache


def _padded(states: Tensor, length: int) -> Tensor:
    return pad(states, (0, 0, 0, length - states.shape[2]))
