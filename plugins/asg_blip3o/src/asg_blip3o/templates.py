"""Tokenizer, special tokens by their text, and the chat templates of understanding and generation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from transformers import Qwen2Tokenizer

from asg_core.errors import WeightsError

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
        try:
            self.tokenizer = Qwen2Tokenizer.from_pretrained(folder)
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
