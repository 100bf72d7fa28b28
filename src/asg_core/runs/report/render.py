"""report.html of a run: everything a colleague needs to judge it, in one file without scripts or outside resources.

``render_report(Path("runs/tiny-1"))`` may be called at any time: on a finished run, on an interrupted one, or while the
run is still going.
"""

from __future__ import annotations

import math
import os
from functools import cache, partial
from pathlib import Path
from statistics import median
from typing import Any

from jinja2 import Environment, PackageLoader
from pydantic import ValidationError

from asg_core.config.schema import RunConfig
from asg_core.method.prompts import FRAMINGS
from asg_core.runs.report import gallery, tables
from asg_core.runs.report.data import RunData, number, read_run
from asg_core.runs.report.formats import FILTERS
from asg_core.runs.report.plots import RAW_POINTS, draw_panels

QUARANTINE_ROWS = 50
"""Most quarantined images listed."""


def render_report(run: Path) -> Path:
    """Read the run folder ``run`` and write ``run/report.html``, whole or not at all.

    The file is self-contained (images and plots inlined, no script), at most :data:`gallery.REPORT_BYTES` long, and the
    same bytes for the same folder. Missing or damaged parts of the folder are left out and named in the report.

    Raises:
        RunFolderError: ``run`` holds no run.
    """
    data = read_run(run)
    page = _environment().get_template("report.html.j2").render(**_context(data))
    target, unfinished = run / "report.html", run / "report.html.tmp"
    unfinished.write_text(page, encoding="utf-8")
    os.replace(unfinished, target)
    return target


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("asg_core.runs.report"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )
    environment.filters.update(FILTERS)
    environment.globals.update(framing_number=gallery.framing_number, verdict=tables.verdict)
    return environment


def _context(data: RunData) -> dict[str, Any]:
    config = _config(data)
    summary = data.summary or {}
    seconds = [s for record in data.metrics if (s := number(record.get("seconds"))) is not None]
    return {
        "run": data,
        "name": data.folder.resolve().name,
        "backbone": summary.get("backbone") or data.config.get("backbone") or "unknown backbone",
        "summary": summary,
        "planned": data.config.get("steps"),
        "ablation": data.config.get("ablation", "none"),
        "status": _status(data),
        "totals": tables.totals(data.metrics),
        "step_seconds": median(seconds) if seconds else None,
        "sections": tables.by_section(data.evaluation),
        "scale": tables.difference_scale(data.evaluation),
        "alarms": tables.alarm_summaries(data.metrics),
        "groups": draw_panels(data.metrics, config),
        "metrics": tables.metric_summaries(data.metrics),
        "raw_points": RAW_POINTS,
        "understanding": gallery.select(data.samples, "understanding", gallery.UNDERSTANDING_ITEMS),
        "generation": gallery.select(data.samples, "generation", gallery.GENERATION_ITEMS),
        "members": gallery.MEMBERS,
        "thumbnail": partial(gallery.thumbnail, data.folder / "samples"),
        "framings": FRAMINGS[: config.solve.framings],
        "max_entropy": math.log(config.solve.framings),
        "quarantine_rows": QUARANTINE_ROWS,
        "changed": tables.changed_settings(data),
    }


def _config(data: RunData) -> RunConfig:
    try:
        return RunConfig.model_validate(data.config)
    except ValidationError:
        data.problems.append("config.yaml does not fit this version of asg_core; reference levels are the defaults.")
        return RunConfig()


def _status(data: RunData) -> tuple[str, str]:
    """(css class, words) of how the run ended."""
    if data.summary is None:
        return "warn", "no summary: still running, or killed"
    if data.summary.get("interrupted"):
        return "warn", "ended early: interrupted, or stopped by an alarm"
    done, planned = number(data.summary.get("steps_done")), number(data.config.get("steps"))
    if done is not None and planned is not None and done < planned:
        return "warn", "fewer steps than planned"
    idle = data.summary.get("never_updated")
    if isinstance(idle, list) and idle:
        return "warn", f"finished; never updated: {', '.join(map(str, idle))}"
    return "good", "finished"
