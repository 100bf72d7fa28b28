"""The text that each token of a completion contributes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise


class TokenTextDecoder:
    """Splits decoded text by token; remembers what it decoded, because samples of one prompt begin alike.

    Args:
        decode: token ids -> text.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        self._decode = decode
        self._known: dict[tuple[int, ...], str] = {(): ""}

    def __call__(self, ids: Sequence[int]) -> tuple[str, ...]:
        """One piece per token; the pieces join to ``decode(ids)``.

        Prefixes are decoded as a whole, since a token's text depends on its neighbours. Replacement characters at the
        end of a prefix stand for characters whose bytes are not complete; a token that completes nothing adds "".
        """
        if not ids:
            return ()
        text = self._text(ids)
        ends = [0]
        for count in range(1, len(ids)):
            settled = _agreement(self._text(ids[:count]).rstrip("\ufffd"), text)
            ends.append(max(ends[-1], settled))
        ends.append(len(text))
        return tuple(text[start:end] for start, end in pairwise(ends))

    def _text(self, ids: Sequence[int]) -> str:
        key = tuple(ids)
        if key not in self._known:
            self._known[key] = self._decode(key)
        return self._known[key]


def _agreement(prefix: str, text: str) -> int:
    """Length of the longest common beginning."""
    if text.startswith(prefix):
        return len(prefix)
    return next((i for i, (a, b) in enumerate(zip(prefix, text, strict=False)) if a != b), len(text))
