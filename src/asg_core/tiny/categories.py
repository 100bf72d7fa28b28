"""Drawing prompts in six categories, and whether a picture fulfils one: GenEval's protocol on the tiny world.

The categories and rules are those of GenEval (Ghosh et al. 2023, arXiv 2310.11513): an object of the named class
must be there, the right number, in the right colour, in the right relation. Ground truth: evaluation only.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from asg_core.tiny.captions import FORMS
from asg_core.tiny.questions import NUMBERS, PLURALS, RELATIONS
from asg_core.tiny.world import COLORS, SHAPES, Scene, Thing

CATEGORIES = ("single object", "two objects", "counting", "colors", "position", "color attribution")


@dataclass(frozen=True)
class DrawingTask:
    """One prompt, its category, and the check that a scene must pass."""

    category: str
    prompt: str
    fulfilled: Callable[[Scene], bool]


def _has(scene: Scene, shape: str, color: str | None = None) -> bool:
    return any(thing.shape == shape and color in (None, thing.color) for thing in scene.things)


def _related(scene: Scene, one: str, relation: str, other: str) -> bool:
    def of(shape: str) -> list[Thing]:
        return [thing for thing in scene.things if thing.shape == shape]

    return any(RELATIONS[relation](a, b) for a in of(one) for b in of(other))


def draw_task(category: str, rng: random.Random) -> DrawingTask:
    """A random task of one of :data:`CATEGORIES`; its prompt is a caption in one of the forms of pre-training."""
    form = rng.choice(FORMS)
    shape, second = rng.sample(SHAPES, 2)
    color, other = rng.sample(tuple(COLORS), 2)
    if category == "single object":
        return DrawingTask(category, form.format(f"a {shape}"), lambda scene: _has(scene, shape))
    if category == "two objects":
        return DrawingTask(
            category, form.format(f"a {shape} and a {second}"), lambda scene: _has(scene, shape) and _has(scene, second)
        )
    if category == "counting":
        count = rng.choice((2, 3, 4))
        return DrawingTask(
            category,
            form.format(f"{NUMBERS[count]} {PLURALS[shape]}"),
            lambda scene: sum(thing.shape == shape for thing in scene.things) == count,
        )
    if category == "colors":
        return DrawingTask(category, form.format(f"a {color} {shape}"), lambda scene: _has(scene, shape, color))
    if category == "position":
        relation = rng.choice(tuple(RELATIONS))
        return DrawingTask(
            category,
            form.format(f"a {shape} {relation} a {second}"),
            lambda scene: _related(scene, shape, relation, second),
        )
    if category == "color attribution":
        return DrawingTask(
            category,
            form.format(f"a {color} {shape} and a {other} {second}"),
            lambda scene: _has(scene, shape, color) and _has(scene, second, other),
        )
    raise ValueError(f"unknown category {category!r}; known: {', '.join(CATEGORIES)}")
