"""What is true of the tiny world: free-form questions about scenes, and drawings against their prompts."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from asg_core.method.answers import same_answer
from asg_core.tiny.captions import FORMS, caption, with_wrong_word
from asg_core.tiny.images import pool_scenes, write_images
from asg_core.tiny.questions import KINDS, draw_place, draw_question
from asg_core.tiny.truth import TinyTruth, shows, true_answer
from asg_core.tiny.world import Scene, Thing, render, sample_scene, scene_codes

SCENE = Scene(
    (
        Thing(0, 3, "circle", "red", "big"),
        Thing(2, 0, "square", "blue", "small"),
        Thing(3, 1, "square", "green", "big"),
    )
)
"""A big red circle at the top right, a small blue square at the left, a big green square at the bottom."""


def test_every_question_of_the_world_gets_its_own_answer() -> None:
    rng = random.Random(3)
    for kind in KINDS:
        for _ in range(60):
            scene = sample_scene(rng)
            question = draw_question(scene, rng, kind)
            found = true_answer(scene, question.text)
            assert found is not None, question
            assert same_answer(found, question.answer, question.text), question
    for _ in range(60):
        scene = sample_scene(rng)
        question = draw_place(scene, rng)
        assert same_answer(str(true_answer(scene, question.text)), question.answer, question.text), question


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("what color is the big square?", "green"),
        ("what color is the small blue square?", "blue"),
        ("what shape is the red thing?", "circle"),
        ("How many  squares are there?", "2"),
        ("how many big objects are there?", "2"),
        ("is there a small object?", "yes"),
        ("is there an object?", "yes"),
        ("which size is at the top?", "big"),
        ("what color is the square?", None),
        ("what color is the triangle?", None),
        ("is the square above the circle?", None),
        ("is the circle above the circle?", None),
        ("how many cats are there?", None),
        ("how many circle are there?", None),
        ("what is it?", None),
        ("is the circle nice?", None),
    ],
)
def test_answers_by_hand(question: str, answer: str | None) -> None:
    assert true_answer(SCENE, question) == answer


def test_which_is_unanswered_where_two_share_the_place() -> None:
    level = Scene((Thing(1, 0, "circle", "red", "big"), Thing(1, 2, "cross", "blue", "big")))
    assert true_answer(level, "which color is at the top?") is None
    assert true_answer(level, "which color is on the far left?") == "red"


def test_a_true_caption_is_shown_in_every_form_of_prompt() -> None:
    rng = random.Random(4)
    for _ in range(200):
        scene = sample_scene(rng)
        text = caption(scene, rng)
        assert shows(scene, rng.choice(FORMS).format(text)) is True, text


def test_most_captions_with_a_wrong_word_are_not_shown() -> None:
    rng = random.Random(5)
    found = []
    for _ in range(200):
        scene = sample_scene(rng)
        text = caption(scene, rng)
        wrong = with_wrong_word(text, rng)
        if wrong != text:
            found.append(shows(scene, wrong))
    # A wrong word may still be true of the scene, or make "two" of no plural; it is rarely shown.
    assert sum(x is True for x in found) / len(found) < 0.15


@pytest.mark.parametrize(
    ("prompt", "shown"),
    [
        ("a red circle", True),
        ("a circle.", True),
        ("draw a square", True),
        ("a blue circle", False),
        ("two squares", True),
        ("three squares", False),
        ("two squares and a circle", True),
        ("two red squares and a circle", False),
        ("a circle above a square", True),
        ("a circle below a square", False),
        ("a square above a square", True),
        ("a circle above a circle", False),
        ("a dog", None),
        ("two circle", None),
        ("many circles", None),
        ("", None),
    ],
)
def test_prompts_by_hand(prompt: str, shown: bool | None) -> None:
    assert shows(SCENE, prompt) is shown


def test_a_number_of_things_is_that_number_and_no_more() -> None:
    three = Scene(tuple(Thing(0, column, "cross", "red", "big") for column in range(3)))
    assert shows(three, "three crosses") is True
    assert shows(three, "two crosses") is False
    assert shows(three, "a cross") is True


def test_drawings_are_read_from_their_pixels() -> None:
    world = TinyTruth(0)
    picture = render(scene_codes(SCENE))
    assert world.answer_on(picture, "how many squares are there?") == "2"
    assert world.shows(picture, "a red circle") is True


def test_answers_about_the_pool_are_about_its_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("asg_core.tiny.images.POOL_SIZE", 12)
    write_images(tmp_path, seed=9)
    exact = [np.asarray(render(scene_codes(scene)), dtype=float) for scene in pool_scenes(9)]
    for index, file in enumerate(sorted(tmp_path.iterdir())):
        with Image.open(file) as image:
            distance = [np.abs(np.asarray(image, dtype=float) - picture).mean() for picture in exact]
        assert int(np.argmin(distance)) == index
        count = len(pool_scenes(9)[index].things)
        assert TinyTruth(9).answer(file.name, "how many objects are there?") == str(count)


def test_held_out_questions_are_the_same_every_time_and_not_about_the_pool() -> None:
    one, other = TinyTruth(0).questions(21), TinyTruth(0).questions(21)
    assert [(q.question, q.answer, q.category, q.image.tobytes()) for q in one] == [
        (q.question, q.answer, q.category, q.image.tobytes()) for q in other
    ]
    assert {q.category for q in one} == set(KINDS)
