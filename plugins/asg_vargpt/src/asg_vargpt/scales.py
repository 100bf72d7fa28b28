"""The multi-scale schedule of an image: which grids are drawn one after another, per aspect ratio and resolution.

A template (height / width) lists 13 grids; a resolution class takes the first few. Image side = last grid side x 16.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from asg_core.errors import ConfigError, did_you_mean

PIXELS_PER_CELL = 16
"""Pixels per side of one cell of the last grid (stride of the VAE)."""

RESOLUTIONS: dict[str, int] = {"0.06M": 7, "0.25M": 10, "0.60M": 12, "1M": 13}
"""Resolution class -> number of scales. The square images have 256, 512, 768 and 1024 pixels per side."""

_TALL: dict[float, str] = {
    1.0: "1x1 2x2 4x4 6x6 8x8 12x12 16x16 20x20 24x24 32x32 40x40 48x48 64x64",
    1.25: "1x1 2x2 3x3 5x4 10x8 15x12 20x16 25x20 30x24 35x28 45x36 55x44 70x56",
    1.333: "1x1 2x2 4x3 8x6 12x9 16x12 20x15 24x18 28x21 36x27 48x36 60x45 72x54",
    1.5: "1x1 2x2 3x2 6x4 9x6 15x10 21x14 27x18 33x22 39x26 48x32 63x42 78x52",
    1.75: "1x1 2x2 3x3 7x4 11x6 14x8 21x12 28x16 35x20 42x24 56x32 70x40 84x48",
    2.0: "1x1 2x2 4x2 6x3 10x5 16x8 22x11 30x15 38x19 46x23 60x30 74x37 90x45",
    2.5: "1x1 2x2 5x2 10x4 15x6 20x8 25x10 30x12 40x16 50x20 65x26 80x32 100x40",
    3.0: "1x1 2x2 6x2 9x3 15x5 21x7 27x9 36x12 45x15 54x18 72x24 90x30 111x37",
}

Grid = tuple[int, int]


def _templates() -> dict[float, tuple[Grid, ...]]:
    table: dict[float, tuple[Grid, ...]] = {}
    for ratio, text in _TALL.items():
        pairs = [grid.split("x") for grid in text.split()]
        grids = tuple((int(h), int(w)) for h, w in pairs)
        table[ratio] = grids
        if ratio != 1.0:
            table[int(1000 / ratio) / 1000] = tuple((w, h) for h, w in grids)
    return table


TEMPLATES: dict[float, tuple[Grid, ...]] = _templates()
"""height / width -> all 13 grids (height, width), coarse to fine."""


@dataclass(frozen=True)
class Schedule:
    """The grids of one image.

    Attributes:
        grids: (height, width) in cells, coarse to fine.
        rope_grid: the template's finest grid, onto which positions of every scale are stretched.
    """

    grids: tuple[Grid, ...]
    rope_grid: Grid

    @property
    def lengths(self) -> list[int]:
        """Positions per scale."""
        return [h * w for h, w in self.grids]

    @property
    def positions(self) -> int:
        """Positions of the whole image; 2521 for 512 x 512."""
        return sum(self.lengths)

    @property
    def pixels(self) -> Grid:
        """(height, width) of the image in pixels."""
        h, w = self.grids[-1]
        return h * PIXELS_PER_CELL, w * PIXELS_PER_CELL

    def rows_and_columns(self, scale: int) -> list[Grid]:
        """Position of every cell of one scale on ``rope_grid``, row-major; halves round to even."""
        h, w = self.grids[scale]
        full_h, full_w = self.rope_grid
        rows = [round(Fraction(i * full_h, h)) for i in range(h)]
        columns = [round(Fraction(j * full_w, w)) for j in range(w)]
        return [(row, column) for row in rows for column in columns]


def schedule(ratio: float, resolution: str) -> Schedule:
    """The schedule of the template nearest to ``ratio`` (height / width, > 0) at a resolution class.

    Raises:
        ConfigError: unknown resolution class, or a ratio that is not positive.
    """
    if resolution not in RESOLUTIONS:
        raise ConfigError(
            f"resolution {resolution!r} is unknown",
            f"VARGPT draws at {', '.join(RESOLUTIONS)} pixels",
            did_you_mean(resolution, RESOLUTIONS),
        )
    if not ratio > 0:
        raise ConfigError(f"aspect ratio {ratio} is not positive", "it is height / width", "use 1.0 for a square image")
    nearest = min(TEMPLATES, key=lambda template: abs(template - ratio))
    grids = TEMPLATES[nearest]
    return Schedule(grids[: RESOLUTIONS[resolution]], grids[-1])


def schedule_of(grids: tuple[Grid, ...]) -> Schedule:
    """The schedule that consists of exactly ``grids``: the prefix of one template.

    The shortest prefixes are shared by several templates; then the first in table order is taken.

    Raises:
        ConfigError: no template starts with these grids.
    """
    for template in TEMPLATES.values():
        if grids and template[: len(grids)] == grids:
            return Schedule(grids, template[-1])
    raise ConfigError(
        f"{len(grids)} scales ending in {grids[-1] if grids else 'nothing'} are no schedule of VARGPT",
        "no aspect-ratio template starts with them",
        "draw with an aspect ratio and a resolution class of the table",
    )
