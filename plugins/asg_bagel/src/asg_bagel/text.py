"""What a BAGEL context is made of: text, pictures as the vision tower sees them, and pictures as latents.

Rotary positions count differently from tokens: a text token takes one, a whole image, markers included, takes one.

Then BAGEL as a causal model that asg_core decodes text with: ``[image] [bos prompt eos] bos answer eos``.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor
from transformers import Cache, DynamicCache

from asg_bagel.modeling_bagel import Bagel
from asg_bagel.processing import BagelTokenizer, ResizeRule, to_patches, to_pixels
from asg_core.backbones.devices import moved_to, tensor_on
from asg_core.models.decoding import ImageFeatureCache, Segment

MARKERS = 2
"""Markers lead a latent segment, so that understanding tokens come first; attention inside an image has no order."""


class SegmentBuilder:
    """Turns texts, pictures and latents into embeddings with positions.

    Args:
        model: provides the embedding weights.
        tokenizer: provides ids and markers.
        vision_rule: how pictures are sized for the vision tower.
    """

    def __init__(self, model: Bagel, tokenizer: BagelTokenizer, vision_rule: ResizeRule) -> None:
        self.model, self.tokenizer, self.vision_rule = model, tokenizer, vision_rule

    def ids(self, ids: Sequence[int]) -> Segment:
        """Causal text from token ids, markers included by the caller; (L, D)."""
        positions = torch.arange(len(ids), device=self.model.device)[None]
        return Segment(self._tokens(ids), positions, len(ids))

    def text(self, text: str) -> Segment:
        """One text segment: ``bos, ids, eos``."""
        return self.ids(self.tokenizer.text_segment(text))

    def see(self, images: Sequence[Image.Image]) -> list[Tensor]:
        """Pictures -> per picture (n, D) in the model's dtype, ready to stand between image markers.

        All pictures pass the vision tower as one batch. Depends on frozen weights only.
        """
        if not images:
            return []
        patch = self.model.config.vision.patch_size
        resized = [self.vision_rule.resize(image) for image in images]
        device, dtype = self.model.device, self.model.dtype
        patches = [moved_to(device, to_patches(to_pixels(image), patch), dtype) for image in resized]
        grids = [(image.height // patch, image.width // patch) for image in resized]
        features = self.model.vit_model.vision_model(patches, [columns for _, columns in grids])
        return [
            self.model.connector(feature) + self.model.vit_pos_embed(*grid)
            for feature, grid in zip(features, grids, strict=True)
        ]

    def vision(self, seen: Tensor) -> Segment:
        """(n, D) from :meth:`see` -> one image segment of n + 2 tokens at one shared position."""
        markers = self._tokens([self.tokenizer.image_start, self.tokenizer.image_end])
        return self._image(torch.cat([markers[:1], seen, markers[1:]]))

    def latents(self, tokens: Tensor, time: Tensor, rows: int) -> Tensor:
        """Input embeddings of latent images being denoised, or clean ones at time 0.

        Args:
            tokens: (B, n, w) latent tokens, row-major.
            time: (B,) flow time in [0, 1].
            rows: of the latent grid; columns are n / rows.

        Returns:
            (B, 2 + n, D): both image markers, then the latents.
        """
        model = self.model
        markers = self._tokens([self.tokenizer.image_start, self.tokenizer.image_end])
        embedded = model.vae2llm(tokens.to(model.dtype)) + model.time_embedder(time)[:, None]
        embedded = embedded + model.latent_pos_embed(rows, tokens.shape[1] // rows)
        return torch.cat([markers.expand(len(tokens), -1, -1), embedded], dim=1)

    def clean_latents(self, tokens: Tensor, rows: int) -> Segment:
        """(n, w) latent tokens of a finished picture as context (editing); prefill it with ``split=MARKERS``."""
        return self._image(self.latents(tokens[None], torch.zeros(1, device=tokens.device), rows)[0])

    def _image(self, embeds: Tensor) -> Segment:
        positions = torch.zeros(1, len(embeds), dtype=torch.long, device=embeds.device)
        return Segment(embeds, positions, 1, causal=False)

    def _tokens(self, ids: Sequence[int]) -> Tensor:
        index = tensor_on(self.model.device, list(ids), torch.long)
        embedded: Tensor = self.model.language_model.model.embed_tokens(index)
        return embedded


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
