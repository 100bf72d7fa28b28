"""What goes in: the tokenizer and how segments are marked, the resize rule, pixels and patches.

Plain PIL and torch; the same numbers as upstream's transforms. There is no chat template, there are no role names.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import Qwen2Tokenizer

from asg_core.errors import WeightsError
from asg_core.models.weights.inventory import check_tokenizer_files


class BagelTokenizer:
    """Texts to ids and back, and the four marker ids.

    Attributes:
        bos, eos: around every text segment (``<|im_start|>``, ``<|im_end|>``).
        image_start, image_end: around every image segment (``<|vision_start|>``, ``<|vision_end|>``).
        size: number of ids that stand for something; the vocabulary's rows beyond are padding.
    """

    def __init__(self, directory: Path) -> None:
        """Load from a checkpoint. Raises WeightsError when the files are missing or lack the markers."""
        check_tokenizer_files(directory)
        try:
            self._tokenizer = Qwen2Tokenizer.from_pretrained(str(directory), local_files_only=True)
        except (OSError, ValueError) as error:
            raise WeightsError(
                f"{directory} has no usable tokenizer",
                str(error),
                "put the release's tokenizer files next to the weights",
            ) from error
        self.size = len(self._tokenizer)
        self.bos = self._id("<|im_start|>", directory)
        self.eos = self._id("<|im_end|>", directory)
        self.image_start = self._id("<|vision_start|>", directory)
        self.image_end = self._id("<|vision_end|>", directory)
        added = self._tokenizer.added_tokens_decoder.values()
        self._special = sorted((token.content for token in added if token.special), key=len, reverse=True)

    def _id(self, token: str, directory: Path) -> int:
        found = self._tokenizer.get_vocab().get(token)
        if found is None:
            raise WeightsError(
                f"the tokenizer in {directory} has no {token}",
                "every segment of a BAGEL context is marked with it",
                "use the release's own",
            )
        return int(found)

    def encode(self, text: str) -> list[int]:
        """Plain ids, nothing added. Marker texts in ``text`` become markers; see :meth:`text_segment`."""
        return list(self._tokenizer.encode(text, add_special_tokens=False))

    def text_segment(self, text: str) -> list[int]:
        """``bos, ids, eos`` of untrusted text: whatever spells a special token is removed first."""
        previous = None
        while previous != text:
            previous = text
            for token in self._special:
                text = text.replace(token, "")
        return [self.bos, *self.encode(text), self.eos]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids, special tokens left out, spaces untouched."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))


MAX_PIXELS = 14 * 14 * 9 * 1024


@dataclass(frozen=True)
class ResizeRule:
    """How an image's size is chosen, in pixels.

    Attributes:
        longest: the long side is at most this.
        shortest: the short side is at least this, unless that would break ``longest``.
        stride: both sides become multiples of it.
        max_pixels: area above which the image is shrunk again.
    """

    longest: int
    shortest: int
    stride: int
    max_pixels: int = MAX_PIXELS

    def size(self, width: int, height: int) -> tuple[int, int]:
        """(width, height) of the resized image.

        The aspect ratio is kept only up to the stride. The area rule multiplies both sides by the *ratio of areas*, not
        its root, so it shrinks more than needed; upstream's models were trained with it.
        """
        scale = max(min(self.longest / max(width, height), 1.0), self.shortest / min(width, height))
        width, height = self._snap(width, scale), self._snap(height, scale)
        if width * height > self.max_pixels:
            scale = self.max_pixels / (width * height)
            width, height = self._snap(width, scale), self._snap(height, scale)
        if max(width, height) > self.longest:
            scale = self.longest / max(width, height)
            width, height = self._snap(width, scale), self._snap(height, scale)
        return width, height

    def _snap(self, side: int, scale: float) -> int:
        return max(self.stride, round(round(side * scale) / self.stride) * self.stride)

    def resize(self, image: Image.Image) -> Image.Image:
        """The RGB image at its new size, bicubic with PIL's antialiasing."""
        image = to_rgb(image)
        return image.resize(self.size(*image.size), Image.Resampling.BICUBIC)


def to_rgb(image: Image.Image) -> Image.Image:
    """RGB; transparent parts (alpha channel or palette transparency) are laid over white."""
    if image.mode == "RGB":
        return image
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        layered = image.convert("RGBA")
        canvas = Image.new("RGB", image.size, (255, 255, 255))
        canvas.paste(layered, mask=layered.getchannel("A"))
        return canvas
    return image.convert("RGB")


def to_pixels(image: Image.Image) -> Tensor:
    """RGB image -> (3, H, W) float32 in [-1, 1]."""
    array = torch.from_numpy(np.array(image, dtype=np.uint8))
    return (array.permute(2, 0, 1).float() / 255 - 0.5) / 0.5


def to_patches(pixels: Tensor, patch: int) -> Tensor:
    """(3, h p, w p) -> (h w, p p 3): patches row-major, each as (row, column, colour), colour fastest."""
    channels, height, width = pixels.shape
    cells = pixels.view(channels, height // patch, patch, width // patch, patch)
    return cells.permute(1, 3, 2, 4, 0).reshape(-1, patch * patch * channels)
