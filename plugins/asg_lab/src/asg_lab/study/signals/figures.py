"""The plots of a study of signals, as SVG."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from asg_core.runs.report.plots import INKS, STROKE_NAMES, STROKES, TEXT, Ink, dots, smooth, style, svg
from asg_lab.study.signals.rows import Asked, Drawn, Solved
from asg_lab.study.signals.tables import HeldOut, as_number, lesson

_INK_ORDER: tuple[Ink, ...] = ("violet", "solver", "generator", "proposer", "olive")
_QUANTILES = 10
_SHARE = "majority share f"


@dataclass(frozen=True)
class Key:
    """Legend entry of a curve."""

    label: str
    colour: str
    stroke: str


@dataclass(frozen=True)
class Drawing:
    """A plot and what goes around it."""

    title: str
    note: str
    keys: list[Key]
    svg: str


Curve = tuple[NDArray[np.float64], NDArray[np.float64]]
R = TypeVar("R", Asked, Drawn)


def held_out_plots(tables: Sequence[HeldOut], rows: Mapping[str, Sequence[Solved]]) -> list[Drawing]:
    """Reliability of the majority share, and wrong majorities by raw STE; one curve a model."""
    reliability = {t.model: (np.array([b.share for b in t.bins]), _shares_right(t)) for t in tables}
    return [
        _drawn(
            "Share of right majorities, by majority share",
            "On the dotted line the share that agrees is the share that is right. Bars: 95 % intervals.",
            reliability,
            lambda axes: _diagonal(axes, tables),
            _SHARE,
        ),
        _drawn(
            "Share of wrong majorities, by raw STE",
            "Questions in ten groups of equal size by rising raw STE. A signal that knows nothing is flat.",
            {model: _by_quantile(found) for model, found in rows.items()},
            lambda axes: None,
            "tenth of the questions",
        ),
    ]


def training_plots(asked: Sequence[Asked], drawn: Sequence[Drawn]) -> list[Drawing]:
    """Rewards of one arm and the truth, by step, all seeds together."""
    plots = []
    if asked:
        plots.append(
            _by_step(
                "Understanding: reward and truth",
                "Means of each recorded step over all seeds (dots), smoothed (lines).",
                asked,
                {
                    "Proposer's reward": lambda r: r.reward,
                    "question has a true answer": lambda r: float(r.truth is not None),
                    "majority right": lambda r: as_number(r.right),
                    "majority right where the Solver learns": lesson,
                },
            )
        )
    if drawn:
        plots.append(
            _by_step(
                "Generation: reward and truth",
                "The reward is quality times a mix of fidelity, cycle consistency and diversity: its level is not that "
                "of the truth, its direction should be.",
                drawn,
                {
                    "Generator's reward": lambda r: r.reward,
                    "fidelity as judged": lambda r: r.s_fid,
                    "true fidelity": lambda r: r.fidelity,
                    "prompt truly shown": lambda r: as_number(r.shows),
                },
            )
        )
    return plots


def _by_step(title: str, note: str, rows: Sequence[R], values: Mapping[str, Callable[[R], float | None]]) -> Drawing:
    curves: dict[str, Curve] = {}
    for label, value in values.items():
        found: dict[int, list[float]] = {}
        for row in rows:
            if (x := value(row)) is not None:
                found.setdefault(row.step, []).append(x)
        steps = sorted(found)
        curves[label] = np.array(steps, dtype=float), np.array([np.mean(found[s]) for s in steps])
    return _drawn(title, note, curves, lambda axes: None, "step", smoothed=True)


def _drawn(
    title: str,
    note: str,
    curves: Mapping[str, Curve],
    extra: Callable[[Axes], None],
    xlabel: str,
    smoothed: bool = False,
) -> Drawing:
    figure = Figure(figsize=(4.6, 2.6))
    axes = figure.add_axes((0.115, 0.19, 0.87, 0.77))
    axes.set_ylim(-0.03, 1.03)
    keys = []
    for position, (label, (x, y)) in enumerate(curves.items()):
        ink, stroke = _INK_ORDER[position % len(_INK_ORDER)], position % len(STROKES)
        keys.append(Key(label, INKS[ink], STROKE_NAMES[stroke]))
        if not len(x):
            continue
        if smoothed:
            axes.add_patch(dots(x, y, INKS[ink]))
        line = smooth(y) if smoothed else y
        axes.plot(
            x, line, color=INKS[ink], linestyle=STROKES[stroke], linewidth=1.7, marker="" if smoothed else "o", ms=3.5
        )
    extra(axes)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=xlabel != _SHARE, min_n_ticks=1))
    axes.set_xlabel(xlabel, color=TEXT, fontsize=9)
    style(axes)
    return Drawing(title, note, keys, svg(figure))


def _diagonal(axes: Axes, tables: Sequence[HeldOut]) -> None:
    axes.plot([0, 1], [0, 1], color=TEXT, linewidth=0.8, linestyle=(0, (1, 2)))
    for position, table in enumerate(tables):
        for found in table.bins:
            ink = INKS[_INK_ORDER[position % len(_INK_ORDER)]]
            axes.plot([found.share] * 2, [found.low, found.high], color=ink, linewidth=1, alpha=0.6)


def _shares_right(table: HeldOut) -> NDArray[np.float64]:
    return np.array([b.right / b.n for b in table.bins])


def _by_quantile(rows: Sequence[Solved]) -> Curve:
    known = sorted((row.ste, not row.right) for row in rows if row.ste is not None)
    groups = [g for g in np.array_split(np.array([wrong for _, wrong in known], dtype=float), _QUANTILES) if len(g)]
    return np.arange(1, len(groups) + 1, dtype=float), np.array([g.mean() for g in groups])
