"""What is true of the tiny world's pictures: answers to free-form questions, and whether a drawing shows its prompt.

Ground truth: for evaluations and studies only; training never loads this file. Questions and prompts here are a
model's own words, so everything may be unanswerable: None then, never a guess.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
from PIL.Image import Image

from asg_core.config.seeding import derive_seed
from asg_core.evaluation.truth import KnownQuestion, KnownWorld
from asg_core.tiny.captions import FORMS
from asg_core.tiny.detector import read_scene
from asg_core.tiny.evaluation import make_questions
from asg_core.tiny.images import pool_scenes
from asg_core.tiny.questions import NUMBERS, PLACES, PLURALS, RELATIONS
from asg_core.tiny.world import COLORS, SHAPES, SIZES, Scene, Thing, photograph

_ANYTHING = ("object", "thing", "shape")
_SINGULAR = {plural: shape for shape, plural in PLURALS.items()} | {f"{name}s": name for name in _ANYTHING}
_RELATION = "|".join(RELATIONS)
_PLACE = "|".join(PLACES)


class TinyTruth(KnownWorld):
    """The known world of the embedded backbone. ``seed`` is a run's: it fixes pool and held-out questions."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._pool = pool_scenes(seed)

    def questions(self, count: int) -> list[KnownQuestion]:
        """See KnownWorld."""
        noise = np.random.default_rng(derive_seed(self._seed, "tiny", "truth", "noise"))
        return [
            KnownQuestion(photograph(scene, noise), question.text, question.answer, question.kind)
            for scene, question in make_questions(count, self._seed)
        ]

    def answer(self, source: str, question: str) -> str | None:
        """See KnownWorld."""
        return true_answer(self._pool[int(source.removesuffix(".png"))], question)

    def answer_on(self, drawing: Image, question: str) -> str | None:
        """See KnownWorld."""
        return true_answer(read_scene(drawing), question)

    def shows(self, drawing: Image, prompt: str) -> bool | None:
        """See KnownWorld."""
        return shows(read_scene(drawing), prompt)


def true_answer(scene: Scene, question: str) -> str | None:
    """The answer to ``question`` about ``scene``: a word, or digits for a count.

    None where the question is of no form that the world has, or is about "the" thing of which there is not exactly one.
    """
    text = " ".join(question.lower().split())
    for pattern, answered in _FORMS:
        match = pattern.fullmatch(text)
        if match:
            return answered(scene, match)
    return None


def shows(scene: Scene, prompt: str) -> bool | None:
    """Whether ``scene`` shows what ``prompt`` says. None where the prompt is no caption of the world.

    The rules are GenEval's: each thing is there ("a": at least one, a number: exactly so many), or both are there and
    stand in the relation.
    """
    text = " ".join(prompt.lower().split()).removesuffix(".")
    for form in sorted(FORMS, key=len, reverse=True):
        text = text.removeprefix(form.removesuffix("{}"))
    related = re.fullmatch(rf"a (.+) ({_RELATION}) a (.+)", text)
    if related:
        one, other = _named(scene, related[1]), _named(scene, related[3])
        if one is None or other is None:
            return None
        return any(RELATIONS[related[2]](a, b) for a in one for b in other)
    fulfilled = True
    for part in re.split(r", | and ", text):
        number, _, noun = part.partition(" ")
        *attributes, name = noun.split(" ")
        plural = number in NUMBERS[2:]
        if not plural and number != "a":
            return None
        found = _named(scene, " ".join([*attributes, _SINGULAR.get(name, "?") if plural else name]))
        if found is None:
            return None
        fulfilled &= len(found) == NUMBERS.index(number) if plural else bool(found)
    return fulfilled


def _named(scene: Scene, phrase: str) -> list[Thing] | None:
    """The things that a phrase such as "big red circle" or "object" fits; None where it is no such phrase."""
    *attributes, noun = phrase.split(" ")
    if noun not in (*SHAPES, *_ANYTHING) or any(word not in (*COLORS, *SIZES) for word in attributes):
        return None
    return [
        thing
        for thing in scene.things
        if noun in (thing.shape, *_ANYTHING) and all(word in (thing.color, thing.size) for word in attributes)
    ]


def _the(scene: Scene, phrase: str) -> Thing | None:
    found = _named(scene, phrase)
    return found[0] if found is not None and len(found) == 1 else None


def _attribute(scene: Scene, match: re.Match[str]) -> str | None:
    thing = _the(scene, match[2])
    return None if thing is None else str(getattr(thing, match[1]))


def _count(scene: Scene, match: re.Match[str]) -> str | None:
    *attributes, plural = match[1].split(" ")
    found = _named(scene, " ".join([*attributes, _SINGULAR.get(plural, "?")]))
    return None if found is None else str(len(found))


def _existence(scene: Scene, match: re.Match[str]) -> str | None:
    found = _named(scene, match[1])
    return None if found is None else "yes" if found else "no"


def _relation(scene: Scene, match: re.Match[str]) -> str | None:
    one, other = _the(scene, match[1]), _the(scene, match[3])
    if one is None or other is None or one is other:
        return None
    return "yes" if RELATIONS[match[2]](one, other) else "no"


def _which(scene: Scene, match: re.Match[str]) -> str | None:
    place = PLACES[match[2]]
    ranked = sorted(scene.things, key=place)
    if not ranked or (len(ranked) > 1 and place(ranked[0]) == place(ranked[1])):
        return None
    return str(getattr(ranked[0], match[1]))


def _where(scene: Scene, match: re.Match[str]) -> str | None:
    thing = _the(scene, match[1])
    if thing is None:
        return None
    return f"{'top' if thing.row < 2 else 'bottom'} {'left' if thing.column < 2 else 'right'}"


_FORMS: tuple[tuple[re.Pattern[str], Callable[[Scene, re.Match[str]], str | None]], ...] = (
    (re.compile(r"what (color|shape|size) is the (.+)\?"), _attribute),
    (re.compile(r"how many (.+) are there\?"), _count),
    (re.compile(r"is there an? (.+)\?"), _existence),
    (re.compile(rf"is the (.+) ({_RELATION}) the (.+)\?"), _relation),
    (re.compile(rf"which (color|shape|size) is ({_PLACE})\?"), _which),
    (re.compile(r"where is the (.+)\?"), _where),
)
