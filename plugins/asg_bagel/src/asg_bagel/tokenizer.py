"""The stock Qwen2.5 tokenizer and BAGEL's way to mark segments. There is no chat template, there are no role names."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from transformers import Qwen2Tokenizer

from asg_core.errors import WeightsError


class BagelTokenizer:
    """Texts to ids and back, and the four marker ids.

    Attributes:
        bos, eos: around every text segment (``<|im_start|>``, ``<|im_end|>``).
        image_start, image_end: around every image segment (``<|vision_start|>``, ``<|vision_end|>``).
        size: number of ids that stand for something; the vocabulary's rows beyond are padding.
    """

    def __init__(self, directory: Path) -> None:
        """Load from a checkpoint. Raises WeightsError when the files are missing or lack the markers."""
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
