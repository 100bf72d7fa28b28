"""The tokenizer in the wheel is the one that the program makes."""

from __future__ import annotations

from pretrain_tiny.tokenizer import build_tokenizer, serialise

from asg_core.tiny.weights import shipped


def test_the_shipped_tokenizer_is_what_the_program_writes() -> None:
    assert serialise(build_tokenizer()) == (shipped() / "tokenizer.json").read_text(encoding="utf-8")
