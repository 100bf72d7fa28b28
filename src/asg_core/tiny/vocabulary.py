"""Words <-> ids: a lower-case word-level tokenizer of the ``tokenizers`` library, with clean text on the way back."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from importlib.resources import files

from tokenizers import Tokenizer

PAD, UNK, BOS, EOS, ANSWER, DRAW, IMAGE, EMBED = SPECIALS = (
    "<pad>",
    "<unk>",
    "<bos>",
    "<eos>",
    "<answer>",
    "<draw>",
    "<image>",
    "<embed>",
)
"""Template tokens. None of them but <eos> is ever sampled."""

_NO_SPACE_BEFORE = frozenset("?.,:;!)") | {"..."}


class Vocabulary:
    """Encodes plain text and decodes to clean text ("what color is the circle?"). Case is not kept, unknown words
    are <unk>.
    """

    def __init__(self) -> None:
        self._tokenizer = Tokenizer.from_str(_shipped())
        ids: dict[str, int] = self._tokenizer.get_vocab()
        self._words = {index: word for word, index in ids.items()}
        self.special = {name: ids[name] for name in SPECIALS}

    def __len__(self) -> int:
        return len(self._words)

    def encode(self, text: str) -> list[int]:
        """Ids of the words of ``text``. A template token written out in the text is no template token."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """:meth:`encode` of each text."""
        return [encoding.ids for encoding in self._tokenizer.encode_batch(list(texts), add_special_tokens=False)]

    def decode(self, ids: Iterable[int]) -> str:
        """Clean text of ``ids``: no space before punctuation, <unk> as itself, other template tokens as nothing.

        The text of a prefix of ``ids`` is a prefix of the text of ``ids``.
        """
        text = ""
        for index in ids:
            word = self._words[int(index)]
            if word in SPECIALS and word != UNK:
                continue
            text += word if not text or word in _NO_SPACE_BEFORE else f" {word}"
        return text


def known_words() -> frozenset[str]:
    """The words of the shipped model, lower case, without template tokens."""
    return frozenset(json.loads(_shipped())["model"]["vocab"]) - frozenset(SPECIALS)


def _shipped() -> str:
    return files("asg_core.tiny").joinpath("data/tokenizer.json").read_text(encoding="utf-8")
