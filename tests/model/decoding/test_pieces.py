"""Pieces: text by token, whatever the tokenizer does with bytes."""

from __future__ import annotations

import random

import pytest

from asg_core.models.decoding.sampling import token_pieces


def by_bytes(ids):
    return bytes(ids).decode("utf-8", errors="replace")


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("ab", ("a", "b")),
        ("é!", ("", "é", "!")),
        ("a😀b", ("a", "", "", "", "😀", "b")),
        ("", ()),
    ],
)
def test_a_character_belongs_to_the_token_that_completes_it(text, pieces):
    assert token_pieces(by_bytes, list(text.encode())) == pieces


def test_pieces_join_to_the_text_for_any_bytes():
    draw = random.Random(0)
    for _ in range(300):
        ids = [draw.choice([65, 0x20, 0xC3, 0xA9, 0xF0, 0x9F, 0x98, 0x80, 0xFF]) for _ in range(draw.randint(0, 12))]
        pieces = token_pieces(by_bytes, ids)
        assert "".join(pieces) == by_bytes(ids)
        assert len(pieces) == len(ids)


def test_a_decoder_that_rewrites_its_ending_still_joins():
    def cleaned(ids):  # joins words by spaces, but not before a full stop
        return " ".join("ab."[i] for i in ids).replace(" .", ".")

    assert token_pieces(cleaned, [0, 1, 2, 0]) == ("a", " b", ".", " a")
    assert token_pieces(lambda ids: "long" if len(ids) == 1 else "lo", [1, 2]) == ("lo", "")


def test_a_decoder_that_rewrites_its_beginning_gives_no_text_twice():
    texts = {(1,): "ab", (1, 2): "xb", (1, 2, 3): "abc"}
    assert token_pieces(lambda ids: texts[tuple(ids)], (1, 2, 3)) == ("ab", "", "c")
