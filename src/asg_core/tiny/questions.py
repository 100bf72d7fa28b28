"""Questions about a scene with their true answers, in seven kinds. Ground truth: pre-training and evaluation only."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from asg_core.tiny.world import COLORS, SHAPES, Scene, Thing

NUMBERS = ("zero", "one", "two", "three", "four")
PLURALS = {"circle": "circles", "square": "squares", "triangle": "triangles", "cross": "crosses"}
RELATIONS: dict[str, Callable[[Thing, Thing], bool]] = {
    "left of": lambda a, b: a.column < b.column,
    "right of": lambda a, b: a.column > b.column,
    "above": lambda a, b: a.row < b.row,
    "below": lambda a, b: a.row > b.row,
}
"""Whether thing a stands in the relation to thing b; rows grow downwards."""

PLACES: dict[str, Callable[[Thing], int]] = {
    "on the far left": lambda thing: thing.column,
    "on the far right": lambda thing: -thing.column,
    "at the top": lambda thing: thing.row,
    "at the bottom": lambda thing: -thing.row,
}
"""What the thing at a place has least of."""


@dataclass(frozen=True)
class Question:
    """A question about one scene. ``answer`` is one word; ``kind`` is one of :data:`KINDS`."""

    kind: str
    text: str
    answer: str


def references(scene: Scene, thing: Thing) -> list[str]:
    """Phrases that name ``thing`` and nothing else in the scene: "circle", "red circle", "big circle"."""
    phrases = []
    others = [other for other in scene.things if other is not thing]
    if all(other.shape != thing.shape for other in others):
        phrases.append(thing.shape)
    if all((other.shape, other.color) != (thing.shape, thing.color) for other in others):
        phrases.append(f"{thing.color} {thing.shape}")
    if all((other.shape, other.size) != (thing.shape, thing.size) for other in others):
        phrases.append(f"{thing.size} {thing.shape}")
    return phrases


def _color(scene: Scene, rng: random.Random) -> Question | None:
    thing = rng.choice(scene.things)
    names = [name for name in references(scene, thing) if thing.color not in name]
    return Question("color", f"what color is the {rng.choice(names)}?", thing.color) if names else None


def _shape(scene: Scene, rng: random.Random) -> Question | None:
    thing = rng.choice(scene.things)
    same = Counter(other.color for other in scene.things)[thing.color]
    if same > 1:
        return None
    return Question("shape", f"what shape is the {thing.color} {rng.choice(('object', 'thing'))}?", thing.shape)


def _count(scene: Scene, rng: random.Random) -> Question | None:
    what = rng.random()
    if what < 0.35:
        return Question("count", f"how many {rng.choice(('objects', 'shapes'))} are there?", NUMBERS[len(scene.things)])
    thing = rng.choice(scene.things)
    if what < 0.75:
        shape = thing.shape if rng.random() < 0.9 else rng.choice(SHAPES)
        count = sum(other.shape == shape for other in scene.things)
        return Question("count", f"how many {PLURALS[shape]} are there?", NUMBERS[count])
    count = sum(other.color == thing.color for other in scene.things)
    return Question("count", f"how many {thing.color} {rng.choice(('objects', 'shapes'))} are there?", NUMBERS[count])


def _existence(scene: Scene, rng: random.Random) -> Question | None:
    thing = rng.choice(scene.things)
    wanted = rng.random() < 0.5
    if rng.random() < 0.3:
        shape = thing.shape if wanted else rng.choice(SHAPES)
        held = any(other.shape == shape for other in scene.things)
        return Question("existence", f"is there a {shape}?", "yes" if held else "no") if held == wanted else None
    color, shape = thing.color, thing.shape
    if not wanted:
        # Mostly a colour and a shape of the scene that do not belong together: binding is what makes this hard.
        color = rng.choice(scene.things).color if rng.random() < 0.6 else rng.choice(tuple(COLORS))
        shape = rng.choice(SHAPES) if color == thing.color else shape
    held = any((other.color, other.shape) == (color, shape) for other in scene.things)
    return Question("existence", f"is there a {color} {shape}?", "yes" if held else "no") if held == wanted else None


def _position(scene: Scene, rng: random.Random) -> Question | None:
    if len(scene.things) < 2:
        return None
    one, other = rng.sample(scene.things, 2)
    first, second = references(scene, one), references(scene, other)
    holding = [name for name, holds in RELATIONS.items() if holds(one, other)]
    if not first or not second:
        return None
    wanted = rng.random() < 0.5
    relation = rng.choice([name for name in RELATIONS if (name in holding) == wanted])
    return Question("position", f"is the {first[0]} {relation} the {second[0]}?", "yes" if wanted else "no")


def _size(scene: Scene, rng: random.Random) -> Question | None:
    thing = rng.choice(scene.things)
    names = [name for name in references(scene, thing) if thing.size not in name]
    return Question("size", f"what size is the {rng.choice(names)}?", thing.size) if names else None


def _which(scene: Scene, rng: random.Random) -> Question | None:
    if len(scene.things) < 2:
        return None
    place = rng.choice(tuple(PLACES))
    ranked = sorted(scene.things, key=PLACES[place])
    if PLACES[place](ranked[0]) == PLACES[place](ranked[1]):
        return None
    if rng.random() < 0.5:
        return Question("which", f"which color is {place}?", ranked[0].color)
    return Question("which", f"which shape is {place}?", ranked[0].shape)


KINDS: dict[str, Callable[[Scene, random.Random], Question | None]] = {
    "color": _color,
    "shape": _shape,
    "count": _count,
    "existence": _existence,
    "position": _position,
    "size": _size,
    "which": _which,
}
"""Question makers by kind; each returns None when the draw found no well-posed question of its kind."""


def draw_question(scene: Scene, rng: random.Random, kind: str | None = None) -> Question:
    """A well-posed question about the scene, of ``kind`` where the scene allows one, else of a random kind."""
    names = [kind] * 6 if kind else []
    while True:
        name = names.pop() if names else rng.choice(tuple(KINDS))
        question = KINDS[name](scene, rng)
        if question is not None:
            return question


def draw_ill_posed(rng: random.Random) -> str:
    """A question whose subject a scene may hold not at all or several times."""
    what = rng.choice(SHAPES)
    named = f"{rng.choice(tuple(COLORS))} {what}"
    return rng.choice(
        (f"what color is the {what}?", f"what size is the {named}?", f"is the {named} above the {rng.choice(SHAPES)}?")
    )


def draw_place(scene: Scene, rng: random.Random) -> Question:
    """A question about places, the hardest thing to learn here: "where is the circle?", relations, "which ...?"."""
    thing = rng.choice(scene.things)
    names = references(scene, thing)
    if len(scene.things) > 1 and (not names or rng.random() < 0.7):
        return draw_question(scene, rng, rng.choice(("position", "position", "position", "which")))
    if not names:
        return draw_question(scene, rng, "color")
    half = ("top" if thing.row < 2 else "bottom", "left" if thing.column < 2 else "right")
    return Question("where", f"where is the {rng.choice(names)}?", " ".join(half))
