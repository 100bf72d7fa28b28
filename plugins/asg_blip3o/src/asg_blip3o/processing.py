"""What goes in: tokenizer, chat templates, and images as tensors.

Special tokens are looked up by their text. Images go in as Qwen2-VL patches for understanding, or as the square input
of the EVA-CLIP tower.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL.Image import Image, Resampling
from torch import Tensor
from transformers import Qwen2Tokenizer, Qwen2VLImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

from asg_core.errors import ImageError, WeightsError
from asg_core.models.weights.inventory import check_tokenizer_files

SYSTEM = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
USER = "<|im_start|>user\n"
ASSISTANT = "<|im_end|>\n<|im_start|>assistant\n"
CAPTION = "Please generate image based on the following caption: "
NEGATIVE_TEXT = " "
"""What the decoder's negative features are made of, without template."""


def generation_text(caption: str) -> str:
    """The whole text before ``[IMG]``: the caption as a user turn and an empty assistant header."""
    return f"{SYSTEM}{USER}{CAPTION}{caption}{ASSISTANT}"


def training_text(caption: str) -> str:
    """As :func:`generation_text`, with the assistant turn closed: the form that the original trained on."""
    return f"{generation_text(caption)}<|im_end|>\n"


@dataclass(frozen=True)
class SpecialIds:
    """Ids of the tokens that the model gives a meaning. Looked up by text: they differ between checkpoints."""

    im_end: int
    end_of_text: int
    image_pad: int
    vision_start: int
    vision_end: int
    img: int
    query_slot: int


class Vocabulary:
    """Text to ids and back.

    Args:
        folder: a release with its tokenizer files.

    Raises:
        WeightsError: the tokenizer cannot be read or lacks a special token.
    """

    def __init__(self, folder: Path) -> None:
        check_tokenizer_files(folder)
        try:
            self.tokenizer = Qwen2Tokenizer.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError) as error:
            raise WeightsError(
                f"the tokenizer in {folder} cannot be read", str(error), "download the tokenizer files of the release"
            ) from error
        self.special = SpecialIds(
            im_end=self._id("<|im_end|>", folder),
            end_of_text=self._id("<|endoftext|>", folder),
            image_pad=self._id("<|image_pad|>", folder),
            vision_start=self._id("<|vision_start|>", folder),
            vision_end=self._id("<|vision_end|>", folder),
            img=self._id("[IMG]", folder),
            query_slot=self._id("<image>", folder),
        )

    @property
    def stop_ids(self) -> frozenset[int]:
        """Tokens that end a completion."""
        return frozenset({self.special.im_end, self.special.end_of_text})

    def suppressed_ids(self, rows: int) -> tuple[int, ...]:
        """Of ``rows`` output rows: special tokens that are no text and end nothing, and rows without a token."""
        marks = set(self.tokenizer.added_tokens_decoder) - self.stop_ids
        return tuple(sorted(marks | set(range(len(self.tokenizer), rows))))

    def encode(self, text: str) -> list[int]:
        """Ids of ``text``; special tokens written in it become their single ids, nothing is added."""
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False)
        return ids

    def encode_plain(self, text: str) -> list[int]:
        """Ids of ``text`` in which names of special tokens are plain text."""
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
        return ids

    def generation_ids(self, caption: str) -> list[int]:
        """Ids of :func:`generation_text`; special tokens named in the caption have no power."""
        return [*self.encode(SYSTEM + USER), *self.encode_plain(CAPTION + caption), *self.encode(ASSISTANT)]

    def negative_ids(self) -> list[int]:
        """Ids of the text behind the decoder's negative features."""
        return self.encode(NEGATIVE_TEXT)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ``ids`` without special tokens, spaces untouched."""
        text: str = self.tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text

    def _id(self, token: str, folder: Path) -> int:
        found = self.tokenizer.get_vocab().get(token)
        if found is None:
            raise WeightsError(
                f"the tokenizer in {folder} has no token {token!r}",
                "BLIP3o adds it to the Qwen2 vocabulary",
                "use the tokenizer files of the BLIP3o release, not those of Qwen2.5-VL",
            )
        return int(found)


@dataclass(frozen=True)
class Patches:
    """Patches of one image: ``pixels`` (t*h*w, channels*temporal*patch*patch), ``grid`` (t, h, w) before merging."""

    pixels: Tensor
    grid: tuple[int, int, int]


class ImagePatches:
    """The stock Qwen2-VL processor (its PIL form, bit-equal to the original) behind a size clamp.

    Args:
        folder: a release; its ``preprocessor_config.json`` is used when there, else the stock values with the
            original's pixel limits.
        min_side, max_side: pixels, the clamp of :func:`clamp_size`.
    """

    def __init__(self, folder: Path, min_side: int, max_side: int) -> None:
        self.min_side, self.max_side = min_side, max_side
        try:
            if (folder / "preprocessor_config.json").is_file():
                self.processor = Qwen2VLImageProcessorPil.from_pretrained(folder, local_files_only=True)
            else:
                self.processor = Qwen2VLImageProcessorPil(size={"shortest_edge": 56 * 56, "longest_edge": 12845056})
        except (OSError, ValueError) as error:
            raise WeightsError(
                f"{folder / 'preprocessor_config.json'} cannot be used",
                str(error),
                "download it from the release again",
            ) from error

    @property
    def multiple(self) -> int:
        """Side of one language-model token in pixels."""
        return int(self.processor.patch_size * self.processor.merge_size)

    def resize(self, image: Image) -> Image:
        """RGB image at the clamped size, bicubic."""
        size = clamp_size(*image.size, self.min_side, self.max_side, self.multiple)
        rgb = image.convert("RGB")
        return rgb if size == rgb.size else rgb.resize(size, Resampling.BICUBIC)

    def target_size(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) that the stock processor resizes to.

        Raises:
            ImageError: one side is over 200 times the other.
        """
        size = self.processor.size
        try:
            resized = smart_resize(height, width, self.multiple, size["shortest_edge"], size["longest_edge"])
        except ValueError as error:
            raise ImageError(
                f"an image of {width}x{height} pixels cannot be shown", str(error), "leave it out"
            ) from error
        return int(resized[0]), int(resized[1])

    def patches(self, image: Image) -> Patches:
        """Patches of an RGB image as it is (no clamp), float32. Raises ImageError for an extreme aspect ratio."""
        self.target_size(image.height, image.width)
        made = self.processor(images=[image], return_tensors="pt")
        t, h, w = (int(n) for n in made["image_grid_thw"][0])
        return Patches(made["pixel_values"], (t, h, w))

    def __call__(self, images: Sequence[Image]) -> list[Patches]:
        """Clamp, then patches, of each image."""
        return [self.patches(self.resize(image)) for image in images]


def clamp_size(width: int, height: int, min_side: int, max_side: int, multiple: int) -> tuple[int, int]:
    """(width, height) in pixels after the clamp of the original trainer.

    Scaled down to ``max_side`` on the long side, or up to ``min_side`` on the short side, then both sides floored to
    a multiple of ``multiple`` (at least one): the aspect ratio may change slightly.
    """
    scale = 1.0
    if max(width, height) > max_side:
        scale = max_side / max(width, height)
    elif min(width, height) < min_side:
        scale = min_side / min(width, height)

    def floored(side: int) -> int:
        return max(multiple, round(side * scale) // multiple * multiple)

    return floored(width), floored(height)


def eva_pixels(images: Sequence[Image], side: int, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """(B, 3, side, side) float32 input of the EVA-CLIP tower.

    Short side to ``side`` (bicubic), centre crop, scale to [0, 1], normalise per channel with ``mean`` and ``std``.
    The crop loses the ends of elongated images.
    """
    rows = []
    for image in images:
        rgb = image.convert("RGB")
        short = min(rgb.size)
        width, height = (side if edge == short else int(side * edge / short) for edge in rgb.size)
        resized = rgb.resize((width, height), Resampling.BICUBIC)
        left, top = round((width - side) / 2), round((height - side) / 2)
        cropped = np.asarray(resized.crop((left, top, left + side, top + side)))
        rows.append(torch.from_numpy(cropped.copy()).permute(2, 0, 1))
    scaled = torch.stack(rows).float() / 255
    return (scaled - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
