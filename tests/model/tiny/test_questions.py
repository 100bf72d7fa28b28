"""Questions have the answers that a person would give, captions are true, specs parse."""

from __future__ import annotations

import random

import pytest

from asg_core.method.answers import answer_kind
from asg_core.method.prompts import Spec, parse_question, parse_spec
from asg_core.tiny.captions import caption, spec, with_wrong_word
from asg_core.tiny.categories import CATEGORIES, draw_task
from asg_core.tiny.questions import KINDS, draw_ill_posed, draw_place, draw_question
from asg_core.tiny.world import Scene, Thing, sample_scene

SCENE = Scene(
    (
        Thing(0, 3, "circle", "red", "big"),
        Thing(2, 0, "square", "blue", "small"),
        Thing(3, 1, "square", "green", "big"),
    )
)
"""A big red circle at the top right, a small blue square at the left, a big green square at the bottom."""

ANSWERS = {
    "what color is the circle?": "red",
    "what color is the small square?": "blue",
    "what color is the big square?": "green",
    "what shape is the blue object?": "square",
    "how many objects are there?": "three",
    "how many squares are there?": "two",
    "how many red objects are there?": "one",
    "how many triangles are there?": "zero",
    "is there a circle?": "yes",
    "is there a cross?": "no",
    "is there a red circle?": "yes",
    "is there a blue circle?": "no",
    "is there a red square?": "no",
    "is the circle above the blue square?": "yes",
    "is the circle left of the blue square?": "no",
    "is the blue square left of the green square?": "yes",
    "is the blue square below the green square?": "no",
    "what size is the circle?": "big",
    "what size is the blue square?": "small",
    "which color is on the far left?": "blue",
    "which shape is on the far right?": "circle",
    "which color is at the bottom?": "green",
    "where is the circle?": "top right",
    "where is the green square?": "bottom left",
}


def test_answers_by_hand() -> None:
    rng = random.Random(0)
    drawn = [draw_question(SCENE, rng) for _ in range(4000)] + [draw_place(SCENE, rng) for _ in range(200)]
    found = {question.text: question.answer for question in drawn}
    assert {text: found.get(text) for text in ANSWERS} == ANSWERS
    # The two squares have one shape, so nothing but an attribute may name one of them.
    assert "what color is the square?" not in found
    assert "what size is the square?" not in found


def test_every_question_passes_the_gate_and_asks_for_what_its_kind_says() -> None:
    rng = random.Random(1)
    for kind in KINDS:
        for _ in range(60):
            question = draw_question(sample_scene(rng), rng, kind)
            assert parse_question(question.text) == question.text
            expected = {"existence": "yes_no", "position": "yes_no", "count": "count"}.get(question.kind, "open")
            assert answer_kind(question.text) == expected
    assert all(parse_question(draw_ill_posed(rng)) for _ in range(20))


def test_yes_and_no_are_about_equally_frequent() -> None:
    rng = random.Random(2)
    for kind in ("existence", "position"):
        asked = [draw_question(sample_scene(rng), rng, kind) for _ in range(1500)]
        yes = [question.answer == "yes" for question in asked if question.kind == kind]
        assert 0.4 < sum(yes) / len(yes) < 0.65


def test_captions_by_hand() -> None:
    rng = random.Random(3)
    one = Scene((Thing(0, 0, "cross", "black", "small"),))
    assert {caption(one, rng, ()), caption(one, rng, ("size", "color"))} == {"a cross", "a small black cross"}
    two = Scene((Thing(0, 0, "cross", "red", "big"), Thing(0, 2, "circle", "blue", "big")))
    assert {caption(two, rng, ("color",)) for _ in range(60)} == {
        "a red cross left of a blue circle",
        "a blue circle right of a red cross",
        "a red cross and a blue circle",
        "a blue circle and a red cross",
    }
    assert {caption(SCENE, rng, ()) for _ in range(60)} == {"a circle and two squares", "two squares and a circle"}


def test_a_wrong_word_changes_one_word_of_the_caption() -> None:
    rng = random.Random(4)
    for _ in range(300):
        true = caption(sample_scene(rng), rng)
        wrong = with_wrong_word(true, rng)
        pairs = list(zip(true.split(), wrong.split(), strict=True))
        assert sum(a != b for a, b in pairs) == 1, (true, wrong)


def test_specs_have_the_asked_form_with_three_distinct_questions() -> None:
    rng = random.Random(5)
    for _ in range(300):
        parsed = parse_spec(spec(sample_scene(rng), rng))
        assert isinstance(parsed, Spec)
        assert len(parsed.questions) == parsed.raw_count == 3


@pytest.mark.parametrize(
    ("category", "prompt", "fulfilled"),
    [
        ("single object", "circle", True),
        ("single object", "cross", False),
        ("two objects", "circle and a square", True),
        ("two objects", "triangle and a square", False),
        ("counting", "two squares", True),
        ("counting", "three squares", False),
        ("counting", "two circles", False),
        ("colors", "red circle", True),
        ("colors", "blue circle", False),
        ("position", "circle above a square", True),
        ("position", "circle left of a square", False),
        ("color attribution", "red circle and a green square", True),
        ("color attribution", "green circle and a red square", False),
    ],
)
def test_categories_by_hand(category: str, prompt: str, fulfilled: bool) -> None:
    rng = random.Random(6)
    tasks = (draw_task(category, rng) for _ in range(20000))
    task = next(task for task in tasks if task.prompt.removeprefix("a ") == prompt)
    assert task.fulfilled(SCENE) is fulfilled


def test_an_empty_scene_fulfils_no_task() -> None:
    rng = random.Random(7)
    assert not any(draw_task(category, rng).fulfilled(Scene(())) for category in CATEGORIES for _ in range(20))
