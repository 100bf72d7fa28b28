"""Prompts and parsers: seven framings of one instruction, a strict question gate, specs that survive real prose."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asg_core.method.prompts import (
    CANONICAL_FRAMING,
    FRAMINGS,
    HELD_OUT_FRAMINGS,
    SCORING_FRAMINGS,
    SPEC_PROMPT,
    GateFailure,
    Spec,
    frame,
    parse_question,
    parse_spec,
)
from devkit.sizes import fuzz


def test_there_are_seven_framings_and_three_held_out() -> None:
    assert len(set(FRAMINGS)) == 7
    assert FRAMINGS[0] == CANONICAL_FRAMING
    assert len(SCORING_FRAMINGS) == 3
    assert set(SCORING_FRAMINGS) <= set(FRAMINGS)
    assert not set(HELD_OUT_FRAMINGS) & set(FRAMINGS)


@pytest.mark.parametrize("framing", [*FRAMINGS, *HELD_OUT_FRAMINGS])
def test_every_framing_holds_the_question_once(framing: str) -> None:
    assert frame("Is it red?", framing).count("Is it red?") == 1
    assert "{" not in frame("Is it red?", framing)


def test_braces_in_a_question_are_kept() -> None:
    assert frame("What does {question} or {0} mean?", "Say: {question}") == "Say: What does {question} or {0} mean?"


@pytest.mark.parametrize(
    ("completion", "question"),
    [
        ("Is the ball red?", "Is the ball red?"),
        ("  Is the ball red?\n", "Is the ball red?"),
        ("Question: Is the ball red?", "Is the ball red?"),
        ("Q1: Is the ball red?", "Is the ball red?"),
        ("1. Is the ball red?", "Is the ball red?"),
        ("- Is the ball red?", "Is the ball red?"),
        ("1. Q: Is the ball red?", "Is the ball red?"),
        ('"Is the ball red?"', "Is the ball red?"),
        ('"Question: Is the ball red?"', "Is the ball red?"),
        ("Is  the\tball red ?", "Is the ball red?"),
        ("Question marks are where?", "Question marks are where?"),
        ("Questions are asked by whom?", "Questions are asked by whom?"),
        ("1.5 metres is how far?", "1.5 metres is how far?"),
        ("Is it 3 or 4?", "Is it 3 or 4?"),
    ],
)
def test_a_question_is_taken_out_of_its_wrapping(completion: str, question: str) -> None:
    assert parse_question(completion) == question


@pytest.mark.parametrize(
    "completion",
    [
        "",
        " \n ",
        "The ball is red.",
        "Is the ball red",
        "Is it red? Is it blue?",
        "Is it red??",
        "Is it red?\nIs it blue?",
        "Is it red? Yes.",
        "Sure! Here is one:\nIs the ball red?",
        "Red ball?",
        "Question:?",
        "1 + 2 = ?",
        "? ? ?",
        "<question>Is the ball red?</question>",
        "```Is the ball red?```",
        "{{Is the ball red?}}",
        "# Is the ball red?",
        "Is " + "very " * 40 + "red?",
    ],
)
def test_what_is_no_single_question_fails_the_gate(completion: str) -> None:
    failure = parse_question(completion)
    assert isinstance(failure, GateFailure)
    assert failure.reason


def test_the_longest_question_is_the_callers_choice() -> None:
    assert parse_question("Is the ball red?", max_words=4) == "Is the ball red?"
    assert isinstance(parse_question("Is the ball red?", max_words=3), GateFailure)


@fuzz(150)
@given(st.text(max_size=60) | st.text('Qq1. :?-"is it\n', max_size=60))
def test_a_parsed_question_parses_to_itself(completion: str) -> None:
    question = parse_question(completion)
    if isinstance(question, str):
        assert parse_question(question) == question
        assert question.count("?") == 1
        assert question.endswith("?")


def spec(completion: str) -> Spec:
    parsed = parse_spec(completion)
    assert isinstance(parsed, Spec), parsed
    return parsed


PAIRS = (("What colour is the ball?", "red"), ("Is there a box?", "yes"), ("How many balls are there?", "two"))


@pytest.mark.parametrize(
    "completion",
    [
        "Prompt: a red ball. Q: What colour is the ball? A: red Q: Is there a box? A: yes "
        "Q: How many balls are there? A: two",
        "Prompt: a red ball\nQ1: What colour is the ball?\nA1: red\nQ2: Is there a box?\nA2: yes\n"
        "Q3: How many balls are there?\nA3: two",
        'prompt: "a red ball"\nQuestion: What colour is the ball?\nAnswer: red\n'
        "Question: Is there a box?\nAnswer: yes\nQuestion: How many balls are there? Answer: two\n",
        "Prompt: a red ball Q1. What colour is the ball? A1. red Q2) Is there a box? A2) yes "
        "Q3: How many balls are there? A: two",
    ],
)
def test_a_spec_in_any_usual_layout(completion: str) -> None:
    assert spec(completion) == Spec("a red ball", PAIRS, 3)


def test_the_form_the_proposer_is_shown_is_the_form_that_parses() -> None:
    form = SPEC_PROMPT[SPEC_PROMPT.index("Prompt: ...") :]
    filled = form
    for value in ("a red ball", *(part for pair in PAIRS for part in pair)):
        filled = filled.replace("...", value, 1)
    assert spec(filled) == Spec("a red ball", PAIRS, 3)


def test_words_such_as_question_are_no_labels() -> None:
    parsed = spec(
        "Prompt: a man who asks a question. It rains at the BBQ. Q: Is it raining there? A: that is the question. "
        "Q: What is the letter? A: the Q."
    )
    assert parsed.prompt == "a man who asks a question. It rains at the BBQ"
    assert parsed.questions == (("Is it raining there?", "that is the question."), ("What is the letter?", "the Q."))
    assert parsed.raw_count == 2


def test_dropped_questions_still_count_as_written() -> None:
    parsed = spec(
        "Prompt: a ball Q: What colour is it? A: red Q: what colour is it? A: blue Q: Is it big? Q: Red? A: yes "
        "Q: It is round. A: yes Q: Is there a box? A: no"
    )
    assert parsed.questions == (("What colour is it?", "red"), ("Is there a box?", "no"))
    assert parsed.raw_count == 6


def test_a_question_without_mark_does_not_swallow_the_next() -> None:
    parsed = spec("Prompt: a ball Q: What colour is it Q: Is it very big? A: yes")
    assert parsed.questions == (("Is it very big?", "yes"),)
    assert parsed.raw_count == 2


def test_at_most_three_questions_are_taken() -> None:
    many = " ".join(f"Q: Is it ball number {i}? A: yes" for i in range(5))
    parsed = spec(f"Prompt: balls {many}")
    assert len(parsed.questions) == 3
    assert parsed.raw_count == 5


@pytest.mark.parametrize(
    "completion",
    [
        "",
        "a red ball",
        "Prompt: Q: What colour is it? A: red Q: Is there a box? A: no",
        "Q: What colour is it? A: red",
        "Prompt: a red ball",
        "Prompt: Q: What colour is it? A: red",
        "Prompt: a ball Q: What colour is it?",
        "Prompt: a ball Q: It is red. A: yes",
        "Prompt: <b>ball</b> Q: What colour is it? A: red",
        "Prompt: " + "very " * 81 + "red Q: What colour is it? A: red",
    ],
)
def test_what_is_no_spec_fails_the_gate(completion: str) -> None:
    assert isinstance(parse_spec(completion), GateFailure)


@fuzz(150)
@given(
    st.lists(
        st.sampled_from(["Prompt:", "Q:", "A:", "Q1.", "a ball", "is it red", "?", "\n", "question.", " "]), max_size=25
    )
)
def test_a_spec_never_holds_more_than_was_written(parts: list[str]) -> None:
    parsed = parse_spec(" ".join(parts))
    if isinstance(parsed, Spec):
        assert 1 <= len(parsed.questions) <= min(3, parsed.raw_count)
        assert parsed.prompt
        assert all(parse_question(question) == question and answer for question, answer in parsed.questions)
