"""Whole steps on random weights: samples keep their tokens and log-probs, but read as questions, specs and answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

from asg_core.backbones.interface import Backbone, Role, TextRequest, TextSample, TextSamplings
from asg_core.method.prompts import CAPTION_PROMPT, QUESTION_PROMPT, SPEC_PROMPT

QUESTIONS = ("What colour is the large bird?", "What stands behind the table?", "Where is the red cup?")
SPEC = "Prompt: a red bird Q: What colour is the bird? A: red Q: What is red? A: a bird Q: Where is it? A: left"
ANSWERS = ("red", "blue")


@contextmanager
def scripted_text(backbone: Backbone) -> Iterator[None]:
    """Inside, every completion of ``backbone`` reads as what its prompt asks for, chosen by its tokens.

    Random weights write nothing that parses, so their steps would end at the gate. What is sampled, scored and learned
    stays the backbone's own; only ``text``, ``pieces`` and ``finish_reason`` are replaced.
    """
    own = {name: vars(backbone).get(name) for name in ("ask", "solve")}
    for name in own:
        setattr(backbone, name, partial(_read, getattr(backbone, name)))
    try:
        yield
    finally:
        for name, method in own.items():
            delattr(backbone, name) if method is None else setattr(backbone, name, method)


def _read(
    complete: Callable[..., list[TextSample]],
    requests: Sequence[TextRequest],
    sampling: TextSamplings,
    *role: Role | None,
    **named: Role | None,
) -> list[TextSample]:
    return [_scripted(sample) for sample in complete(requests, sampling, *role, **named)]


def _scripted(sample: TextSample) -> TextSample:
    texts = {QUESTION_PROMPT: QUESTIONS, SPEC_PROMPT: (SPEC,), CAPTION_PROMPT: ("a red bird",)}
    choices = texts.get(sample.request.prompt, ANSWERS)
    text = choices[sum(sample.token_ids) % len(choices)]
    pieces = (text, *[""] * (len(sample.token_ids) - 1))
    return replace(sample, text=text, pieces=pieces, finish_reason="stop")
