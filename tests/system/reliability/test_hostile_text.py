"""Whatever a model writes is data: parsed and counted in no time, never obeyed, and it crashes nothing."""

from __future__ import annotations

import math
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asg_core.backbones.interface import TextRequest, TextSample
from asg_core.method.answers import answer_span, canonical_label, normalise, opposite, same_answer, vote
from asg_core.method.prompts import FRAMINGS, GateFailure, frame, parse_question, parse_spec
from asg_core.method.token_entropy import solver_token_entropy
from devkit.sizes import fuzz

from .hostile_texts import PIECES, texts


@fuzz(2000)
@given(texts)
def test_a_question_that_passes_the_gate_is_one_plain_line(text: str) -> None:
    question = parse_question(text)
    if isinstance(question, GateFailure):
        assert question.reason
        return
    assert question.endswith("?")
    assert question.count("?") == 1
    assert len(question.splitlines()) == 1
    assert 3 <= len(question[:-1].split()) <= 40
    assert not any(mark in question for mark in ("```", "{{", "}}", "<answer>", "<script>"))
    assert parse_question(question) == question
    assert all(frame(question, framing).count(question) >= 1 for framing in FRAMINGS)


@fuzz(1500)
@given(
    st.lists(st.one_of(texts, st.sampled_from(["Prompt: a red cat", "Q: what is this thing? A: a cat"])), max_size=8)
)
def test_a_spec_has_questions_that_pass_the_gate(parts: list[str]) -> None:
    spec = parse_spec(" ".join(parts))
    if isinstance(spec, GateFailure):
        assert spec.reason
        return
    assert 1 <= len(spec.questions) <= 3
    assert spec.raw_count >= len(spec.questions)
    assert 1 <= len(spec.prompt.split()) <= 80
    for question, answer in spec.questions:
        assert parse_question(question) == question
        assert answer


@fuzz(2500)
@given(texts, texts)
def test_labels_are_stable_and_comparison_is_symmetric(answer: str, question: str) -> None:
    start, end = answer_span(answer)
    assert 0 <= start <= end <= len(answer)
    assert normalise(normalise(answer)) == normalise(answer)
    label = canonical_label(answer, question)
    assert canonical_label(label, question) == label
    assert same_answer(answer, question, question) == same_answer(question, answer, question)
    assert opposite(answer, question, question) == opposite(question, answer, question)


@fuzz(1000)
@given(st.lists(texts, min_size=1, max_size=9), st.integers(0, 2**63 - 1))
def test_votes_are_shares_of_one(labels: list[str], seed: int) -> None:
    tally = vote([canonical_label(text, "what is this?") for text in labels], seed)
    assert math.fsum(tally.shares.values()) == pytest.approx(1.0)
    assert 0 <= tally.entropy <= math.log(len(labels)) + 1e-9
    assert tally.majority in tally.shares


numbers = st.one_of(st.floats(0, 8), st.sampled_from([math.nan, math.inf, -math.inf]))


@fuzz(1000)
@given(st.lists(st.tuples(st.one_of(texts, st.just("")), numbers), max_size=12), st.integers(1, 6))
def test_token_entropies_give_a_finite_value_or_none(tokens: list[tuple[str, float]], first: int) -> None:
    pieces = tuple(piece for piece, _ in tokens)
    sample = TextSample(
        TextRequest("", None, 0),
        "".join(pieces),
        (0,) * len(tokens),
        pieces,
        (0.0,) * len(tokens),
        tuple(h for _, h in tokens),
        "length",
        1.0,
    )
    for reduce in ("max", "mean"):
        value = solver_token_entropy(sample, first, reduce)  # type: ignore[arg-type]
        assert value is None or (math.isfinite(value) and 0 <= value <= 8)


@pytest.mark.parametrize("piece", [p for p in PIECES if p] + ["Q: what is it? A: ", "Prompt: a Q: ", "<answer>a"])
def test_a_very_long_completion_takes_no_time(piece: str) -> None:
    text = (piece + " ") * (100_000 // (len(piece) + 1))
    started = time.process_time()
    parse_question(text)
    parse_spec(text)
    parse_spec("Prompt: " + text)
    canonical_label(text, text)
    assert time.process_time() - started < 4
