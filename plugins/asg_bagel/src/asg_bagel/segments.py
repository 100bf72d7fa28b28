"""What a BAGEL context is made of: text, pictures as the vision tower sees them, and pictures as latents.

Rotary positions count differently from tokens: a text token takes one, a whole image, markers included, takes one.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor

from asg_bagel.modeling_bagel import Bagel
from asg_bagel.processing import ResizeRule, to_patches, to_pixels
from asg_bagel.tokenizer import BagelTokenizer
from asg_core.backbones.devices import moved_to, tensor_on
from asg_core.models.decoding import Segment

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
