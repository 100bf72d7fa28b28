"""The text side on the core's shared decoding: chat prompt, images through the vision tower."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL.Image import Image
from torch import Tensor
from transformers import JanusForConditionalGeneration, PreTrainedTokenizerBase
from transformers.models.janus.image_processing_pil_janus import JanusImageProcessorPil

from asg_core.backbones.devices import moved_to
from asg_core.models.decoding import ImageFeatureCache, Segment, TransformersCausalModel, join_segments


class JanusText(TransformersCausalModel):
    """``<bos>{system}<|User|>: <boi>image<eoi>\\n{prompt}\\n\\n<|Assistant|>:``, as the released chat template has it.

    Args:
        model: loaded.
        tokenizer: of the model; names the tokens that open and close an image.
        processor: of the model.
        system: text before the first turn.
    """

    def __init__(
        self,
        model: JanusForConditionalGeneration,
        tokenizer: PreTrainedTokenizerBase,
        processor: JanusImageProcessorPil,
        system: str,
    ) -> None:
        self.opening, self.closing = [tokenizer.boi_token_id], [tokenizer.eoi_token_id]
        spare = range(len(tokenizer), model.lm_head.out_features)
        super().__init__(
            model.model.language_model,
            model.lm_head,
            tokenizer,
            header=f"{tokenizer.bos_token}{system}<|User|>: ",
            tail="\n\n<|Assistant|>:",
            stop_token_ids=[tokenizer.eos_token_id],
            suppressed_token_ids={tokenizer.image_token_id, *self.opening, *self.closing, *spare},
        )
        self.model, self.processor = model, processor
        self._features: ImageFeatureCache[Tensor] = ImageFeatureCache()

    def image_segments(self, images: Sequence[Image]) -> list[Segment]:
        """Each image between its marks; the tower, which carries no adapters, runs once per image object."""
        around = self.token_segment(self.opening), self.token_segment(self.closing)
        newline = self.text_segment("\n", special=False)
        return [
            join_segments([around[0], self._segment(features), around[1], newline])
            for features in self._features.lookup(images, self._encode)
        ]

    def _encode(self, images: Sequence[Image]) -> list[Tensor]:
        """(n, D) language-model embeddings of each image, in one pass of the tower."""
        shown = self.processor([image.convert("RGB") for image in images], return_tensors="pt")["pixel_values"]
        pixels = moved_to(self.model.device, shown, self.model.dtype)
        return list(self.model.model.get_image_features(pixels).pooler_output)

    def _segment(self, features: Tensor) -> Segment:
        return Segment(features, torch.arange(len(features), device=features.device)[None], len(features))
