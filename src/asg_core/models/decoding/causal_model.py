"""What decoding needs of a model: embeddings in, hidden states out. No batching, caching or sampling policy in it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from PIL.Image import Image
from torch import Tensor
from transformers import Cache


@dataclass(frozen=True, eq=False)
class Segment:
    """A run of input embeddings that is prefilled as a whole.

    Attributes:
        embeds: (L, D) in the model's dtype and on its device.
        positions: (A, L) long, offsets from the row's running position counter; A position axes (1 for plain rotary
            embeddings, 3 for M-RoPE).
        advance: how far the segment moves the counter. L for text; an image may move it by less (M-RoPE) or by 1.
        causal: True: each position sees the past and the segment up to itself; False: the past and the whole segment.
    """

    embeds: Tensor
    positions: Tensor
    advance: int
    causal: bool = True


def join_segments(segments: Sequence[Segment]) -> Segment:
    """One segment that equals the given ones in a row, all of which must share ``causal``.

    Raises:
        ValueError: if causal and non-causal segments are mixed; one segment has one attention pattern.
    """
    if len({segment.causal for segment in segments}) != 1:
        raise ValueError("cannot join causal and non-causal segments into one")
    counter, positions = 0, []
    for segment in segments:
        positions.append(segment.positions + counter)
        counter += segment.advance
    return Segment(
        torch.cat([segment.embeds for segment in segments]), torch.cat(positions, dim=1), counter, segments[0].causal
    )


class CausalModel(Protocol):
    """A causal transformer behind text prompts and images. B rows, L new positions, S cached and new ones together.

    Rules that keep sampling and scoring equal:

    * the model is in eval mode (dropout off); base parameters are frozen;
    * the result for a row depends on that row alone;
    * :meth:`forward` obeys ``mask`` and ``positions`` to the letter and derives neither from the cache length: padding
      lies in the middle of a row;
    * layers write to the cache through ``cache.update(keys, values, layer_index)`` once per forward and attend over
      what it returns, and every layer attends over the full past.
    """

    @property
    def stop_token_ids(self) -> Collection[int]:
        """Tokens that end a completion."""

    @property
    def suppressed_token_ids(self) -> Collection[int]:
        """Tokens that are never sampled: -inf before the softmax, in sampling and in scoring log-probs alike."""

    def prefixes(self, images: Sequence[Image | None]) -> list[Segment]:
        """One segment per entry: template header and image, up to where the prompt starts.

        Entries are distinct objects; None is a text-only request. The vision tower runs as one batch. An empty segment
        (L = 0) is allowed.
        """

    def prompt(self, text: str) -> Segment:
        """Prompt text and template tail, up to where the answer starts; at least one position."""

    def embed_tokens(self, ids: Tensor) -> Tensor:
        """(B, L) long -> (B, L, D)."""

    def new_cache(self) -> Cache:
        """An empty cache with plain dynamic layers, as ``transformers.DynamicCache()`` is."""

    def forward(self, embeds: Tensor, mask: Tensor, positions: Tensor, cache: Cache) -> Tensor:
        """Run all layers and the final norm, appending keys and values to ``cache``.

        Args:
            embeds: (B, L, D).
            mask: (B, 1, L, S) bool, True where a query may look; the last L of the S keys are the new ones, except in
                a compiled pass, whose cache says where it put them.
            positions: (A, B, L) long, absolute.
            cache: gives S positions back when L are written to it.

        Returns:
            (B, L, D) hidden states, ready for :meth:`head`.
        """

    def head(self, hidden: Tensor) -> Tensor:
        """(n, D) -> (n, V) float32 raw logits. Called with at most 128 rows."""

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids."""
