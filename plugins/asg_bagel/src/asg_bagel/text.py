"""BAGEL as a causal model that asg_core decodes text with: ``[image] [bos prompt eos] bos answer eos``."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image
from torch import Tensor
from transformers import Cache, DynamicCache

from asg_bagel.segments import SegmentBuilder
from asg_core.models.decoding import ImageFeatureCache, Segment


class BagelText:
    """The text side of the model; implements :class:`asg_core.models.decoding.CausalModel`.

    Args:
        builder: model, tokenizer and vision rule.
    """

    def __init__(self, builder: SegmentBuilder) -> None:
        self.builder = builder
        self._language = builder.model.language_model
        self._seen: ImageFeatureCache[Tensor] = ImageFeatureCache()
        rows = builder.model.config.llm.vocab_size
        self._suppressed = tuple(range(builder.tokenizer.size, rows))

    @property
    def stop_token_ids(self) -> frozenset[int]:
        """``<|im_end|>``."""
        return frozenset({self.builder.tokenizer.eos})

    @property
    def suppressed_token_ids(self) -> tuple[int, ...]:
        """Rows of the vocabulary that are padding and stand for no text."""
        return self._suppressed

    def see(self, images: Sequence[Image.Image]) -> list[Tensor]:
        """Vision features of pictures, (n, D) each; the tower runs once per image object, as one batch."""
        return self._seen.lookup(images, self.builder.see)

    def prefixes(self, images: Sequence[Image.Image | None]) -> list[Segment]:
        """An image segment per picture; nothing for text only. The tower runs on a picture once in its life."""
        seen = iter(self.see([image for image in images if image is not None]))
        return [self.builder.ids([]) if image is None else self.builder.vision(next(seen)) for image in images]

    def prompt(self, text: str) -> Segment:
        """``bos, prompt, eos`` and the ``bos`` that opens the answer."""
        tokenizer = self.builder.tokenizer
        return self.builder.ids([*tokenizer.text_segment(text), tokenizer.bos])

    def embed_tokens(self, ids: Tensor) -> Tensor:
        """(B, L) -> (B, L, D)."""
        embedded: Tensor = self._language.model.embed_tokens(ids)
        return embedded

    def new_cache(self) -> Cache:
        """An empty dynamic cache."""
        return DynamicCache()

    def forward(self, embeds: Tensor, mask: Tensor, positions: Tensor, cache: Cache) -> Tensor:
        """See the protocol; every token is an understanding token, so the generation expert never runs."""
        hidden: Tensor = self._language.model(embeds, mask, positions[0], cache)
        return hidden

    def head(self, hidden: Tensor) -> Tensor:
        """(n, D) -> (n, V) float32."""
        logits: Tensor = self._language.lm_head(hidden)
        return logits.float()

    def decode(self, ids: Sequence[int]) -> str:
        """Text without special tokens."""
        return self.builder.tokenizer.decode(ids)
