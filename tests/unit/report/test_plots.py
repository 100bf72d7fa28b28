"""Smoothing and thinning of curves: what a line and the dots around it may and may not do."""

from __future__ import annotations

import math

import numpy as np
import pytest

from asg_core.config.schema import RunConfig
from asg_core.runs.report.plots import draw_panels, smooth, thin


def test_smoothing_pulls_nothing_towards_zero_at_the_ends() -> None:
    assert smooth(np.full(7, 0.3)) == pytest.approx(np.full(7, 0.3))
    assert smooth(np.array([2.0])) == pytest.approx([2.0])
    assert smooth(np.arange(200.0))[50:150] == pytest.approx(np.arange(50.0, 150.0))


def test_smoothing_by_hand() -> None:
    # Three values, deviation 1: the neighbours of the first weigh exp(-1/2) and exp(-2).
    assert smooth(np.array([1.0, 0.0, 0.0]))[0] == pytest.approx(1 / (1 + math.exp(-0.5) + math.exp(-2)))


def test_thinning_keeps_outliers_and_order() -> None:
    values = np.zeros(5000)
    values[1234], values[4321] = 9.0, -9.0
    steps, kept = thin(np.arange(5000), values)
    assert len(kept) <= 300
    assert {(1234, 9.0), (4321, -9.0)} <= set(zip(steps.tolist(), kept.tolist(), strict=True))
    assert (np.diff(steps) > 0).all()


def test_every_step_of_a_short_run_is_a_dot() -> None:
    metrics = [{"step": s, "kind": "understanding", "h_sc": 0.5 + s / 1000} for s in range(1, 201)]
    ((_, [plot]),) = draw_panels(metrics, RunConfig())
    raw = next(
        line for line in plot.svg.split("<path") if "stroke-linecap: round" in line and "stroke-width: 2.6" in line
    )
    assert raw.count("L ") == 200


def test_an_axis_of_small_values_keeps_the_digits_of_its_labels() -> None:
    metrics = [{"step": s, "kind": "understanding", "kl_solver": 0.0001 * s} for s in range(1, 9)]
    ((_, [plot]),) = draw_panels(metrics, RunConfig())
    assert ">0.0002<" in plot.svg


def test_one_step_is_enough_for_a_plot() -> None:
    ((_, [plot]),) = draw_panels([{"step": 1, "kind": "generation", "s_fid": 0.5}], RunConfig())
    assert [(key.metric, key.early, key.late) for key in plot.keys] == [("s_fid", 0.5, 0.5)]


@pytest.mark.parametrize("values", [[0.0, 0.0], [-1.0, -1.0], [1e-12, 1e12], [1e300, -1e300]])
def test_extreme_values_have_a_plot(values: list[float]) -> None:
    metrics = [{"step": s, "kind": "understanding", "kl_solver": v} for s, v in enumerate(values, start=1)]
    assert len(draw_panels(metrics, RunConfig())) == 1
