"""The table of scales."""

from __future__ import annotations

from itertools import pairwise

import pytest
from asg_vargpt.scales import RESOLUTIONS, TEMPLATES, schedule, schedule_of

from asg_core.errors import ConfigError


@pytest.mark.parametrize(
    ("resolution", "side", "positions"), [("0.06M", 256, 521), ("0.25M", 512, 2521), ("1M", 1024, 10521)]
)
def test_square_images(resolution: str, side: int, positions: int) -> None:
    plan = schedule(1.0, resolution)
    assert plan.pixels == (side, side)
    assert plan.positions == positions


def test_every_template_has_13_growing_scales_and_a_transposed_twin() -> None:
    assert sorted(TEMPLATES) == [
        0.333, 0.4, 0.5, 0.571, 0.666, 0.75, 0.8, 1.0, 1.25, 1.333, 1.5, 1.75, 2.0, 2.5, 3.0
    ]  # fmt: skip
    for ratio, grids in TEMPLATES.items():
        assert len(grids) == 13
        assert grids[0] == (1, 1)
        assert all(a <= c and b <= d for (a, b), (c, d) in pairwise(grids))
        height, width = grids[-1]
        assert height / width == pytest.approx(ratio, rel=0.015)
        assert tuple((w, h) for h, w in grids) in TEMPLATES.values()


def test_the_nearest_template_is_taken() -> None:
    assert schedule(1.45, "0.25M").grids[-1] == (39, 26)
    assert schedule(0.01, "0.25M").grids[-1] == (18, 54)


def test_positions_are_stretched_onto_the_finest_grid_with_halves_to_even() -> None:
    plan = schedule(1.25, "1M")
    assert plan.rope_grid == (70, 56)
    # 20 rows on 70: 3.5 per row, so 0, 3.5, 7, 10.5 -> 0, 4, 7, 10
    rows = [plan.rows_and_columns(6)[16 * i][0] for i in range(4)]
    assert plan.grids[6] == (20, 16)
    assert rows == [0, 4, 7, 10]
    assert schedule(1.25, "0.06M").rope_grid == (70, 56)


def test_a_schedule_is_found_again_from_its_grids() -> None:
    for ratio in TEMPLATES:
        for resolution in RESOLUTIONS:
            plan = schedule(ratio, resolution)
            assert schedule_of(plan.grids) == plan


def test_unknown_sizes_are_typed_errors() -> None:
    with pytest.raises(ConfigError, match=r"0\.25M"):
        schedule(1.0, "0.25")
    with pytest.raises(ConfigError, match="positive"):
        schedule(0.0, "0.25M")
    with pytest.raises(ConfigError, match="no schedule"):
        schedule_of(((1, 1), (7, 9)))
