"""Scenes of coloured shapes on a 4 x 4 grid, and their exact pictures.

One grid cell of 8 x 8 pixels is either blank or holds one thing: 4 shapes x 6 colours x 2 sizes = 48 looks. With 16
background tints that makes the 64-entry patch codebook in which the model draws, so every scene *is* 16 codes.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SHAPES = ("circle", "square", "triangle", "cross")
COLORS: dict[str, tuple[int, int, int]] = {
    "red": (214, 40, 40),
    "green": (40, 160, 60),
    "blue": (40, 80, 210),
    "yellow": (235, 200, 30),
    "purple": (140, 50, 170),
    "black": (30, 30, 30),
}
SIZES = ("small", "big")
GRID = 4
CELL = 8
PIXELS = GRID * CELL
THING_CODES = len(SHAPES) * len(COLORS) * len(SIZES)
CODES = 64


@dataclass(frozen=True, order=True)
class Thing:
    """One thing in one cell; ``row`` and ``column`` count from the top left, 0 to 3."""

    row: int
    column: int
    shape: str
    color: str
    size: str


@dataclass(frozen=True)
class Scene:
    """1 to 4 things in reading order, in distinct cells, on one of the 16 background tints."""

    things: tuple[Thing, ...]
    tint: int = 0


def sample_scene(rng: random.Random) -> Scene:
    """A scene of 1 to 4 things; one scene in four repeats one shape, so that counting matters."""
    count = rng.choices((1, 2, 3, 4), weights=(3, 5, 2, 2))[0]
    cells = rng.sample(range(GRID * GRID), count)
    colors = tuple(COLORS)
    repeated = rng.choice(SHAPES) if rng.random() < 0.25 else None
    one_color = rng.choice(colors) if repeated and rng.random() < 0.5 else None
    things = (
        Thing(
            cell // GRID,
            cell % GRID,
            repeated or rng.choice(SHAPES),
            one_color or rng.choice(colors),
            rng.choice(SIZES),
        )
        for cell in cells
    )
    return Scene(tuple(sorted(things)), rng.randrange(CODES - THING_CODES))


def thing_code(shape: str, color: str, size: str) -> int:
    """The codebook entry of a look, 0 to 47."""
    return (SHAPES.index(shape) * len(COLORS) + tuple(COLORS).index(color)) * len(SIZES) + SIZES.index(size)


def look(code: int) -> tuple[str, str, str] | None:
    """(shape, colour, size) of a codebook entry, None for the blank ones (48 to 63)."""
    if code >= THING_CODES:
        return None
    rest, size = divmod(code, len(SIZES))
    shape, color = divmod(rest, len(COLORS))
    return SHAPES[shape], tuple(COLORS)[color], SIZES[size]


def scene_codes(scene: Scene) -> list[int]:
    """The 16 codes of a scene in reading order."""
    codes = [THING_CODES + scene.tint] * (GRID * GRID)
    for thing in scene.things:
        codes[thing.row * GRID + thing.column] = thing_code(thing.shape, thing.color, thing.size)
    return codes


def codes_scene(codes: list[int]) -> Scene:
    """The scene that 16 codes show; any codes do, also more than four things or mixed tints (the first tint counts)."""
    things = []
    for cell, code in enumerate(codes):
        seen = look(code)
        if seen is not None:
            things.append(Thing(cell // GRID, cell % GRID, *seen))
    tints = [code - THING_CODES for code in codes if code >= THING_CODES]
    return Scene(tuple(things), tints[0] if tints else 0)


def _mask(shape: str, size: str) -> NDArray[np.bool_]:
    side = 8 if size == "big" else 5
    radius = (side - 1) / 2
    y, x = np.mgrid[0:side, 0:side] - radius
    mask: NDArray[np.bool_] = np.ones((side, side), dtype=bool)
    if shape == "circle":
        mask = x**2 + y**2 <= (radius + 0.3) ** 2
    elif shape == "triangle":
        mask = abs(x) <= (y + radius + 1) / 2
    elif shape == "cross":
        mask = np.minimum(abs(x), abs(y)) <= radius / 4
    cell = np.zeros((CELL, CELL), dtype=bool)
    top, left = (0, 0) if size == "big" else (2, 1)
    cell[top : top + side, left : left + side] = mask
    return cell


@cache
def codebook() -> NDArray[np.uint8]:
    """(64, 8, 8, 3) RGB patches: 48 looks on a light background, then 16 background tints. All distinct."""
    patches = np.empty((CODES, CELL, CELL, 3), dtype=np.uint8)
    patches[:THING_CODES] = 232
    for code in range(THING_CODES):
        seen = look(code)
        assert seen is not None
        patches[code][_mask(seen[0], seen[2])] = COLORS[seen[1]]
    for tint in range(CODES - THING_CODES):
        steps = np.array([tint & 3, tint >> 2, 3 - (tint & 3)])
        patches[THING_CODES + tint] = 218 + 9 * steps
    patches.setflags(write=False)
    return patches


def render(codes: list[int]) -> Image.Image:
    """The exact 32 x 32 RGB picture of 16 codes."""
    grid = codebook()[np.asarray(codes).reshape(GRID, GRID)]
    return Image.fromarray(grid.transpose(0, 2, 1, 3, 4).reshape(PIXELS, PIXELS, 3).copy())


def photograph(scene: Scene, rng: np.random.Generator) -> Image.Image:
    """A picture of the scene as a camera would take it: brightness and colour cast vary, pixels are noisy."""
    pixels = np.asarray(render(scene_codes(scene)), dtype=np.float64)
    cast = rng.normal(1.0, 0.04, 3) * rng.normal(1.0, 0.06)
    noisy = pixels * cast + rng.normal(0.0, 6.0, pixels.shape)
    return Image.fromarray(noisy.clip(0, 255).round().astype(np.uint8))
