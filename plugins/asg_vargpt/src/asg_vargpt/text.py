"""The text side on the core's shared decoding: ChatML around Qwen2-VL, images with M-RoPE positions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from PIL.Image import Image
from torch import Tensor
from transformers import PreTrainedTokenizerBase, Qwen2VLImageProcessorPil

from asg_core.backbones.devices import moved_to
from asg_core.models.decoding import ImageFeatureCache, Segment, TransformersCausalModel, join_segments
from asg_core.models.decoding.packed_vision import PackedVision
from asg_vargpt.modeling_vargpt import Vargpt
from asg_vargpt.processing import patches_of

HEADER = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
TAIL = "<|im_end|>\n<|im_start|>assistant\n"


class VargptText(TransformersCausalModel):
    """Ask and solve: prompts in ChatML, images through the vision tower, no image-generation tokens in answers.

    Args:
        model: loaded.
        tokenizer: of the model.
        processor: limits on image sizes.
        stop_token_ids: tokens that end a completion.
    """

    def __init__(
        self,
        model: Vargpt,
        tokenizer: PreTrainedTokenizerBase,
        processor: Qwen2VLImageProcessorPil,
        stop_token_ids: Iterable[int],
    ) -> None:
        tokens = model.architecture.tokens
        spare = range(len(tokenizer), int(model.qwen.config.text_config.vocab_size))
        super().__init__(
            model.language_model,
            model.qwen.lm_head,
            tokenizer,
            header=HEADER,
            tail=TAIL,
            axes=3,
            stop_token_ids=frozenset(stop_token_ids),
            suppressed_token_ids={tokens.start, tokens.end, tokens.pad, *spare},
        )
        self.model, self.processor = model, processor
        self._features: ImageFeatureCache[tuple[Tensor, tuple[int, int]]] = ImageFeatureCache()
        self._vision = PackedVision(model.visual)

    def image_segments(self, images: Sequence[Image]) -> list[Segment]:
        """Vision start, the image's cells, vision end; the tower runs once per image object."""
        return [self._shown(*seen) for seen in self._features.lookup(images, self.encode_images)]

    def encode_images(self, images: Sequence[Image]) -> list[tuple[Tensor, tuple[int, int]]]:
        """Features (n, D) and grid (rows, columns) after merging, per image; one pass of the vision tower."""
        patches, shapes = patches_of(self.processor, images)
        grids = [(rows, columns) for _, rows, columns in shapes.tolist()]
        features = self._vision(torch.split(patches, [rows * columns for rows, columns in grids]), grids)
        merge = int(self.model.visual.spatial_merge_size)
        return [(one, (rows // merge, columns // merge)) for one, (rows, columns) in zip(features, grids, strict=True)]

    def segment_of_image(self, features: Tensor, grid: tuple[int, int]) -> Segment:
        """The cells of one image alone: time stands still, rows and columns count on from the text before."""
        rows, columns = grid
        cells = torch.cartesian_prod(torch.arange(1), torch.arange(rows), torch.arange(columns)).T
        return Segment(features, moved_to(features.device, cells), max(rows, columns))

    def _shown(self, features: Tensor, grid: tuple[int, int]) -> Segment:
        opening = self.text_segment("<|vision_start|>", special=True)
        closing = self.text_segment("<|vision_end|>", special=True)
        return join_segments([opening, self.segment_of_image(features, grid), closing])

    def drawing_ids(self, instruction: str, reply: str = "") -> list[int]:
        """Chat prompt for drawing and the beginning of the reply, ending with the token that switches to an image."""
        return [
            *self._ids(self.header, special=True),
            *self._ids(instruction.strip(), special=False),
            *self._ids(self.tail, special=True),
            *self._ids(reply, special=False),
            self.model.architecture.tokens.start,
        ]

    def _ids(self, text: str, *, special: bool) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False, split_special_tokens=not special)["input_ids"])
