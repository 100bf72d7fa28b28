"""Qwen2.5-VL as the shared text decoding of the core sees it: how an image becomes embeddings and rotary positions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL.Image import Image
from torch import Tensor

from asg_blip3o.modeling_blip3o import Blip3oModel
from asg_blip3o.processing import ASSISTANT, SYSTEM, USER, ImagePatches, Patches, Vocabulary
from asg_core.backbones.devices import moved_to
from asg_core.models.decoding import ImageFeatureCache, Segment, TransformersCausalModel, join_segments
from asg_core.models.decoding.packed_vision import PackedVision

ImageTokens = tuple[Tensor, tuple[int, int, int]]
"""Language-model tokens (n, D) of an image and its patch grid (t, h, w)."""


class LanguageModel(TransformersCausalModel):
    """The text side of the model.

    Args:
        model: the loaded model.
        vocabulary: its tokenizer.
        patches: its image preprocessing.
    """

    def __init__(self, model: Blip3oModel, vocabulary: Vocabulary, patches: ImagePatches) -> None:
        super().__init__(
            model.vlm.model.language_model,
            model.vlm.lm_head,
            vocabulary.tokenizer,
            header=SYSTEM + USER,
            tail=ASSISTANT,
            axes=3,
            stop_token_ids=vocabulary.stop_ids,
            suppressed_token_ids=vocabulary.suppressed_ids(model.vlm.lm_head.out_features),
        )
        self.model, self.special, self.patches = model, vocabulary.special, patches
        self.features: ImageFeatureCache[ImageTokens] = ImageFeatureCache()
        self._vision = PackedVision(model.vlm.model.visual)

    def image_segments(self, images: Sequence[Image]) -> list[Segment]:
        """Each image between its two marks, the vision tower run once per image object (no role has adapters on it)."""
        merge = int(self.model.vlm.config.vision_config.spatial_merge_size)
        opening, closing = (
            self.token_segment([self.special.vision_start]),
            self.token_segment([self.special.vision_end]),
        )
        segments = []
        for tokens, grid in self.features.lookup(images, self._encode):
            positions, advance = image_positions(grid, merge)
            picture = Segment(tokens, moved_to(tokens.device, positions), advance)
            segments.append(join_segments([opening, picture, closing]))
        return segments

    def _encode(self, images: Sequence[Image]) -> list[ImageTokens]:
        shown = self.patches(images)
        return list(zip(self.image_features(shown), (one.grid for one in shown), strict=True))

    def image_features(self, shown: Sequence[Patches]) -> list[Tensor]:
        """Language-model tokens (n, D) of each image, in one pass of the vision tower."""
        return self._vision([one.pixels for one in shown], [one.grid[1:] for one in shown])


def image_positions(grid: tuple[int, int, int], merge: int) -> tuple[Tensor, int]:
    """Rotary positions of one image's tokens and how far they move the counter (Qwen2-VL's M-RoPE).

    All tokens share the time position; row and column count from it; the counter moves by the longer side.

    Args:
        grid: (t, h, w) patches, t = 1.
        merge: patches per token and side.

    Returns:
        (3, h/merge * w/merge) offsets (time, row, column), and the advance.
    """
    rows, columns = grid[1] // merge, grid[2] // merge
    row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    return torch.stack([torch.zeros_like(row), row, column]).flatten(1), max(rows, columns)
