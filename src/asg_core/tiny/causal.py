"""The tiny model as decoding sees it (``asg_core.models.decoding.CausalModel``): picture prefix, prompt, words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from transformers import Cache, DynamicCache

from asg_core.backbones.devices import moved_to, tensor_on
from asg_core.models.decoding import ImageFeatureCache, Segment
from asg_core.tiny.model import PIXELS, TinyModel
from asg_core.tiny.vocabulary import ANSWER, BOS, EOS, SPECIALS, Vocabulary

if TYPE_CHECKING:
    from PIL.Image import Image


def to_pixels(image: Image) -> Tensor:
    """Any picture of any size -> (3, 32, 32) float32 in [0, 1]; pictures of another size are resized, not cropped."""
    image = image.convert("RGB")
    if image.size != (PIXELS, PIXELS):
        image = image.resize((PIXELS, PIXELS))
    return torch.from_numpy(np.asarray(image, dtype=np.float32) / 255).permute(2, 0, 1)


class TinyCausal:
    """Template: <bos> picture prompt <answer> completion <eos>. The picture prefix is one block of full attention."""

    def __init__(self, model: TinyModel, vocabulary: Vocabulary) -> None:
        self._model = model
        self._vocabulary = vocabulary
        self._features: ImageFeatureCache[Tensor] = ImageFeatureCache()
        special = vocabulary.special
        self._start = special[BOS]
        self._answer = special[ANSWER]
        self.stop_token_ids = frozenset({special[EOS]})
        self.suppressed_token_ids = tuple(special[name] for name in SPECIALS if name != EOS)

    @property
    def _device(self) -> torch.device:
        return self._model.rows.device

    def vision(self, images: Sequence[Image]) -> list[Tensor]:
        """(16, width) vision tokens of each picture; the stem runs once per image object."""

        def encode(missing: list[Image]) -> list[Tensor]:
            pixels = torch.stack([to_pixels(image) for image in missing])
            return list(self._model.see(moved_to(self._device, pixels, self._model.rows.dtype)).unbind())

        return self._features.lookup(images, encode)

    def prefixes(self, images: Sequence[Image | None]) -> list[Segment]:
        """See CausalModel."""
        seen = iter(self.vision([image for image in images if image is not None]))
        start = self.embed_tokens(tensor_on(self._device, [[self._start]]))[0]
        embeds = [start if image is None else torch.cat([start, next(seen)]) for image in images]
        return [
            Segment(embed, torch.arange(len(embed), device=self._device)[None], len(embed), causal=image is None)
            for image, embed in zip(images, embeds, strict=True)
        ]

    def prompt(self, text: str) -> Segment:
        """See CausalModel."""
        ids = tensor_on(self._device, [[*self._vocabulary.encode(text), self._answer]])
        return Segment(self.embed_tokens(ids)[0], torch.arange(ids.shape[1], device=self._device)[None], ids.shape[1])

    def embed_tokens(self, ids: Tensor) -> Tensor:
        """See CausalModel."""
        embeds: Tensor = self._model.trunk.embed_tokens(ids)
        return embeds

    def new_cache(self) -> Cache:
        """See CausalModel."""
        return DynamicCache()

    def forward(self, embeds: Tensor, mask: Tensor, positions: Tensor, cache: Cache) -> Tensor:
        """See CausalModel."""
        hidden: Tensor = self._model.trunk(
            inputs_embeds=embeds, attention_mask=mask, position_ids=positions[0], past_key_values=cache, use_cache=True
        ).last_hidden_state
        return hidden

    def head(self, hidden: Tensor) -> Tensor:
        """See CausalModel."""
        logits: Tensor = self._model.word_head(hidden)
        return logits.float()

    def decode(self, ids: Sequence[int]) -> str:
        """See CausalModel."""
        return self._vocabulary.decode(ids)
