"""report.html of a run: everything a colleague needs to judge it, in one file without scripts or outside resources."""

from __future__ import annotations

import math
from functools import cache, partial
from pathlib import Path
from statistics import median

from jinja2 import Environment, PackageLoader
from pydantic import ValidationError

from asg_core.config.schema import RunConfig
from asg_core.method.prompts import FRAMINGS
from asg_core.runs.folder import number, write_atomically
from asg_core.runs.report import gallery
from asg_core.runs.report.data import RunData, changed_settings, early_and_late
from asg_core.runs.report.formats import FILTERS
from asg_core.runs.report.plots import RAW_POINTS, draw_panels


def render_report(run: Path) -> Path:
    """Read the run folder ``run``, whose run may still be going, and write ``run/report.html``, whole or not at all.

    The file is self-contained (images and plots inlined, no script), at most :data:`gallery.REPORT_BYTES` long, and the
    same bytes for the same folder. Missing or damaged parts of the folder are left out and named in the report.

    Raises:
        RunFolderError: ``run`` holds no run.
    """
    data = RunData(run)
    config = _config(data)
    template = _environment().get_template("report.html.j2")
    page = template.render(
        run=data,
        name=run.resolve().name,
        config=config,
        groups=draw_panels(data.metrics, config),
        thumbnail=partial(gallery.thumbnail, run / "samples"),
    )
    write_atomically(run / "report.html", page)
    return run / "report.html"


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("asg_core.runs.report"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )
    environment.filters.update(FILTERS, median=median)
    environment.tests["number"] = lambda value: number(value) is not None
    environment.globals.update(early_and_late=early_and_late, changed_settings=changed_settings)
    environment.globals.update(gallery=gallery, framings=FRAMINGS, raw_points=RAW_POINTS, log=math.log)
    return environment


def _config(data: RunData) -> RunConfig:
    try:
        return RunConfig.model_validate(data.config)
    except ValidationError:
        data.problems.append("config.yaml does not fit this version of asg_core; reference levels are the defaults.")
        return RunConfig()
