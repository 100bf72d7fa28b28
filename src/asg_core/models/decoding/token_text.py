"""The text that each token of a completion contributes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise


def token_pieces(decode: Callable[[tuple[int, ...]], str], ids: Sequence[int]) -> tuple[str, ...]:
    """One piece per token; the pieces join to ``decode(ids)``.

    Prefixes are decoded as a whole, since a token's text depends on its neighbours. Replacement characters at the end
    of a prefix stand for characters whose bytes are not complete; a token that completes nothing adds "".

    Args:
        decode: token ids -> text; best one that remembers, because samples of one prompt begin alike.
    """
    if not ids:
        return ()
    text = decode(tuple(ids))
    ends = [0]
    for count in range(1, len(ids)):
        prefix = decode(tuple(ids[:count])).rstrip("\ufffd")
        ends.append(max(ends[-1], _agreement(prefix, text)))
    ends.append(len(text))
    return tuple(text[start:end] for start, end in pairwise(ends))


def _agreement(prefix: str, text: str) -> int:
    """Length of the longest common beginning."""
    if text.startswith(prefix):
        return len(prefix)
    return next((i for i, (a, b) in enumerate(zip(prefix, text, strict=False)) if a != b), len(text))
