"""Panels as SVG on light cards, which stay small however long the run was. Which panels: templates/panels.yaml.j2."""

from __future__ import annotations

import io
from typing import Literal, NamedTuple

import matplotlib
import numpy as np
import yaml
from jinja2 import Environment, PackageLoader
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch
from matplotlib.path import Path as Outline
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator
from pydantic import TypeAdapter

from asg_core.config.schema import RunConfig, Section
from asg_core.method.rewards import BELL_CENTRE, BELL_WIDTH
from asg_core.runs.folder import Record, number
from asg_core.runs.report.data import early_and_late

RAW_POINTS = 300
"""Most raw points drawn per curve; beyond it each bin of steps shows its smallest and largest value."""

TEXT, RULE, _BAND = "#59606b", "#e1e2dd", "#ece6f6"
Ink = Literal["proposer", "solver", "generator", "violet", "olive"]
INKS: dict[Ink, str] = {
    "proposer": "#0b5fa5",
    "solver": "#bf4d00",
    "generator": "#00755a",
    "violet": "#7443b8",
    "olive": "#806300",
}
"""Colours on a light card, which is light on a dark page too."""

STROKES = ("solid", (0, (4.5, 1.6)), (0, (1.2, 1.4)), (0, (6, 1.5, 1.2, 1.5)), "solid")
STROKE_NAMES = ("solid", "dashed", "dotted", "dashdot", "solid")
"""By position of the curve in its panel, so that no curve is told apart by colour alone."""


class Curve(NamedTuple):
    """One metric as a curve: key in metrics.jsonl, label, ink, and the kind of step it is taken from (None: both)."""

    key: str
    label: str
    ink: Ink
    kind: Literal["understanding", "generation"] | None = None


class Panel(Section):
    """One small plot over the steps of a run.

    Attributes:
        title: what it shows, with its unit.
        note: how to read it, one sentence.
        curves: drawn in this order; those without values are left out, a panel without curves too.
        share: the y axis is fixed to [0, 1].
        log: the y axis may be logarithmic where all values are positive and span more than a factor of 50.
        band: (low, high) region that the method aims at.
        line: (value, name) of a reference level.
        only_if_nonzero: left out of the report where all values are 0.
    """

    title: str
    note: str
    curves: list[Curve]
    share: bool = False
    log: bool = False
    band: tuple[float, float] | None = None
    line: tuple[float, str] | None = None
    only_if_nonzero: bool = False


class Key(NamedTuple):
    """Legend entry of a curve; ``early`` and ``late`` are means over the first and the last fifth of its steps."""

    metric: str
    label: str
    colour: str
    stroke: str
    early: float
    late: float


class Plot(NamedTuple):
    """A drawn panel: an SVG document and what goes around it."""

    panel: Panel
    svg: str
    keys: list[Key]


def smooth(values: np.ndarray) -> np.ndarray:
    """Centred Gaussian mean of (n,) values, standard deviation n / 30 values but at least 1.

    Near the ends the weights are renormalised, so a constant stays constant and nothing is pulled towards 0.
    """
    deviation = max(1.0, len(values) / 30)
    reach = int(3 * deviation)
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / deviation) ** 2)
    weights = np.convolve(np.ones(len(values)), kernel)[reach : reach + len(values)]
    mean: np.ndarray = np.convolve(values, kernel)[reach : reach + len(values)] / weights
    return mean


def thin(steps: np.ndarray, values: np.ndarray, limit: int = RAW_POINTS) -> tuple[np.ndarray, np.ndarray]:
    """At most ``limit`` of the points: the smallest and the largest of each bin, so that no outlier is hidden."""
    if len(values) <= limit:
        return steps, values
    keep: list[int] = []
    for bin_ in np.array_split(np.arange(len(values)), limit // 2):
        keep += sorted({int(bin_[values[bin_].argmin()]), int(bin_[values[bin_].argmax()])})
    return steps[keep], values[keep]


def draw_panels(metrics: list[Record], config: RunConfig) -> list[tuple[str, list[Plot]]]:
    """(heading, plots) of every panel group that has anything to show. All plots share one step axis.

    ``config`` supplies reference levels (KL target, gradient clip).
    """
    template = Environment(loader=PackageLoader("asg_core.runs.report")).get_template("panels.yaml.j2")
    text = template.render(config=config, bell_centre=BELL_CENTRE, bell_width=BELL_WIDTH)
    groups = TypeAdapter(dict[str, list[Panel]]).validate_python(yaml.safe_load(text))
    drawn = []
    for title, panels in groups.items():
        plots = [plot for panel in panels if (plot := _draw(panel, metrics)) is not None]
        if plots:
            drawn.append((title, plots))
    return drawn


def _draw(panel: Panel, metrics: list[Record]) -> Plot | None:
    curves = [(curve, *_series(metrics, curve)) for curve in panel.curves]
    curves = [(curve, steps, values) for curve, steps, values in curves if len(values)]
    if not curves or (panel.only_if_nonzero and not any(values.any() for *_, values in curves)):
        return None
    figure = Figure(figsize=(4.6, 2.35))
    axes = figure.add_axes((0.115, 0.145, 0.87, 0.82))
    _dress(axes, panel, float(metrics[0]["step"]), float(metrics[-1]["step"]), np.concatenate([v for *_, v in curves]))
    keys = []
    for position, (curve, steps, values) in enumerate(curves):
        ink, stroke = INKS[curve.ink], position % len(STROKES)
        axes.add_patch(dots(*thin(steps, values), ink))
        mean = smooth(values)
        axes.plot(
            steps, mean, color=ink, linestyle=STROKES[stroke], linewidth=1.7, marker="o" if len(values) == 1 else ""
        )
        keys.append(Key(curve.key, curve.label, ink, STROKE_NAMES[stroke], *early_and_late(values.tolist())))
    return Plot(panel, svg(figure), keys)


def _series(metrics: list[Record], curve: Curve) -> tuple[np.ndarray, np.ndarray]:
    """(n,) steps and (n,) values of a metric, without the steps on which it has no value."""
    records = [record for record in metrics if curve.kind in (None, record.get("kind"))]
    found = [(record["step"], value) for record in records if (value := number(record.get(curve.key))) is not None]
    return np.array([step for step, _ in found], dtype=float), np.array([value for _, value in found])


def _dress(axes: matplotlib.axes.Axes, panel: Panel, first: float, last: float, values: np.ndarray) -> None:
    margin = max(0.5, 0.015 * (last - first))
    axes.set_xlim(first - margin, last + margin)
    if panel.log and values.min() > 0 and values.max() / values.min() > 50:
        axes.set_yscale("log")
        axes.yaxis.set_minor_locator(NullLocator())
        axes.set_ylim(values.min() / 1.5, values.max() * 1.5)
    elif panel.share:
        axes.set_ylim(-0.03, 1.03)
    else:
        low, high = min(0.0, values.min()), values.max()
        space = 0.06 * ((high - low) or 1.0)
        axes.set_ylim(low - (space if low < 0 else 0.4 * space), high + space)
        axes.yaxis.set_major_locator(MaxNLocator(5))
    if panel.band:
        axes.axhspan(*panel.band, color=_BAND, linewidth=0)
    if panel.line and axes.get_ylim()[0] <= panel.line[0] <= axes.get_ylim()[1]:
        axes.axhline(panel.line[0], color=TEXT, linewidth=0.7, linestyle=(0, (2, 2)))
        axes.annotate(
            panel.line[1], (1, panel.line[0]), (-1, 2), color=TEXT, fontsize=8, ha="right",
            xycoords=("axes fraction", "data"), textcoords="offset points",
        )  # fmt: skip
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))
    style(axes)


def style(axes: matplotlib.axes.Axes) -> None:
    """Ticks, grid and frame as all plots of a page have them."""
    tick = FuncFormatter(lambda value, _: f"{value:.4g}".replace("-", "−"))
    axes.xaxis.set_major_formatter(tick)
    axes.yaxis.set_major_formatter(tick)
    axes.tick_params(colors=TEXT, labelsize=9, length=0, pad=4)
    axes.grid(axis="y", color=RULE, linewidth=0.8)
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(RULE)


def dots(steps: np.ndarray, values: np.ndarray, ink: str) -> PathPatch:
    """Faint points at (n,) ``steps`` and (n,) ``values`` in one of :data:`INKS`."""
    # One path of zero-length strokes with round caps: a tenth of the size of one marker element per point.
    vertices = np.repeat(np.column_stack([steps, values]), 2, axis=0)
    codes = np.tile([Outline.MOVETO, Outline.LINETO], len(steps))
    outline = Outline(vertices, codes)
    outline.should_simplify = False  # simplification drops zero-length strokes
    return PathPatch(outline, fill=False, edgecolor=ink, alpha=0.45, linewidth=2.6, capstyle="round")


def svg(figure: Figure) -> str:
    """The figure as an SVG document: no background, text as text, the same bytes whenever it is drawn again."""
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "asg"}):
        unknown = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(buffer, format="svg", transparent=True, metadata=unknown)
    return buffer.getvalue()
