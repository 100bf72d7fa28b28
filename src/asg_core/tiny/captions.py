"""Captions and drawing specs of a scene, true or with one wrong word. Ground truth: for pre-training only."""

from __future__ import annotations

import random
from collections import Counter

from asg_core.tiny.questions import NUMBERS, PLURALS, RELATIONS, Question, draw_question, references
from asg_core.tiny.world import COLORS, SHAPES, SIZES, Scene, Thing

FORMS = ("{}", "{}", "{}", "a picture of {}", "a drawing of {}", "draw {}")
"""How a caption to draw is put; half of them bare."""

_WORD_CLASSES = (
    tuple(COLORS),
    SHAPES,
    tuple(PLURALS.values()),
    SIZES,
    NUMBERS[2:],
    ("left", "right"),
    ("above", "below"),
)


def _noun_phrase(thing: Thing, detail: tuple[str, ...]) -> str:
    return " ".join(
        [getattr(thing, attribute) for attribute in ("size", "color") if attribute in detail] + [thing.shape]
    )


def _counted(phrase: str, count: int) -> str:
    if count == 1:
        return f"a {phrase}"
    *attributes, shape = phrase.split()
    return " ".join([NUMBERS[count], *attributes, PLURALS[shape]])


def draw_detail(rng: random.Random) -> tuple[str, ...]:
    """Which attributes a caption mentions beside the shape."""
    return rng.choices(((), ("color",), ("size",), ("size", "color")), weights=(35, 50, 5, 10))[0]


def caption(scene: Scene, rng: random.Random, detail: tuple[str, ...] | None = None) -> str:
    """A true sentence naming every thing: "a red circle left of a blue square", "two crosses and a circle".

    Args:
        scene: what to describe.
        rng: draws wording and order.
        detail: attributes to mention beside the shape ("size", "color"); drawn when None.
    """
    detail = draw_detail(rng) if detail is None else detail
    if len(scene.things) == 2 and rng.random() < 0.5:
        one, other = rng.sample(scene.things, 2)
        first, second = _noun_phrase(one, detail), _noun_phrase(other, detail)
        if first != second:
            relation = rng.choice([name for name, holds in RELATIONS.items() if holds(one, other)])
            return f"a {first} {relation} a {second}"
    phrases = Counter(_noun_phrase(thing, detail) for thing in rng.sample(scene.things, len(scene.things)))
    parts = [_counted(phrase, count) for phrase, count in phrases.items()]
    return " and ".join([*([", ".join(parts[:-1])] if parts[:-1] else []), parts[-1]])


def with_wrong_word(text: str, rng: random.Random) -> str:
    """The caption with one colour, shape, size, number or relation word replaced by another of its class."""
    words = text.replace(",", " ,").split()
    places = [(index, group) for index, word in enumerate(words) for group in _WORD_CLASSES if word in group]
    if places:
        index, group = rng.choice(places)
        words[index] = rng.choice([other for other in group if other != words[index]])
    return " ".join(words).replace(" ,", ",")


def _settled(question: Question, text: str, detail: tuple[str, ...]) -> bool:
    """Whether the caption alone settles the question, so that it can judge a drawing of the caption."""
    words = set(f"{question.text} {question.answer}".replace("?", " ").split())
    if question.kind in ("position", "which"):
        return any(relation in text for relation in RELATIONS)
    return ("color" in detail or not words & set(COLORS)) and ("size" in detail or not words & {*SIZES, "size"})


def _relation_question(scene: Scene, text: str, rng: random.Random) -> Question | None:
    if not any(relation in text for relation in RELATIONS):
        return None
    one, other = rng.sample(scene.things, 2)
    names = [
        [name for name in references(scene, thing) if set(name.split()) <= set(text.split())] for thing in (one, other)
    ]
    if not names[0] or not names[1]:
        return None
    relation = next(name for name in RELATIONS if name in text)
    pair = (one, other) if RELATIONS[relation](one, other) else (other, one)
    ordered = names if pair[0] is one else names[::-1]
    return Question("position", f"is the {ordered[0][0]} {relation} the {ordered[1][0]}?", "yes")


def spec(scene: Scene, rng: random.Random) -> str:
    """A drawing spec in the form that the spec prompt asks for: a caption and three questions with true answers.

    Three questions in four are settled by the caption; the rest are about something it does not say.
    """
    detail = draw_detail(rng)
    text = caption(scene, rng, detail)
    chosen: dict[str, Question] = {}
    about_relation = _relation_question(scene, text, rng)
    if about_relation is not None:
        chosen[about_relation.text] = about_relation
    for attempt in range(60):
        if len(chosen) == 3:
            break
        question = draw_question(scene, rng)
        if attempt > 40 or rng.random() < 0.08 or _settled(question, text, detail):
            chosen.setdefault(question.text, question)
    asked = list(chosen.values())[:3]
    rng.shuffle(asked)
    return " ".join([f"prompt: {text}.", *(f"q: {question.text} a: {question.answer}" for question in asked)])
