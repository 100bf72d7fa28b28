"""What a study leaves behind: raw rows, a table for a README, and one page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from jinja2 import ChoiceLoader, Environment, PackageLoader

from asg_core.runs.folder import write_atomically, write_json
from asg_core.runs.report.formats import FILTERS
from asg_lab.study.analysis import StudyResult, StudyRow
from asg_lab.study.results import as_data

Groups = dict[str, list[StudyRow]]


def write_results(result: StudyResult, out: Path) -> Path:
    """Write ``results.json``, ``table.md`` and ``study.html`` into ``out``; returns the page."""
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "results.json", as_data(result))
    write_atomically(out / "table.md", markdown(result.rows))
    against = dict.fromkeys(row.against for row in result.rows)
    page = (
        environment()
        .get_template("study.html.j2")
        .render(
            result=result,
            tables={name: _wholes_and_parts([r for r in result.rows if r.against == name]) for name in against},
            several=len(result.suite.seeds) > 1,
            reach_of=_reach,
            place=lambda value, reach: round(50 + 50 * value / reach, 1),
        )
    )
    write_atomically(out / "study.html", page)
    return out / "study.html"


def _wholes_and_parts(rows: Sequence[StudyRow]) -> tuple[Groups, dict[str, Groups]]:
    """Rows of whole sections by section; rows of their categories by section and category. Arms keep their order."""
    wholes: Groups = {}
    parts: dict[str, Groups] = {}
    for r in rows:
        section, category = r.row.section, r.row.category
        group = wholes if category == "all" else parts.setdefault(section, {})
        group.setdefault(section if category == "all" else category, []).append(r)
    return wholes, parts


def _reach(groups: Groups) -> float:
    """Largest end of an interval: what the scale of a table must hold on either side of 0."""
    ends = (abs(end) for rows in groups.values() for r in rows for end in (r.row.ci_low, r.row.ci_high))
    return max(ends, default=0.0) or 1.0


def environment() -> Environment:
    """Templates of studies and what they share with the report."""
    made = Environment(
        loader=ChoiceLoader([PackageLoader("asg_lab.study"), PackageLoader("asg_core.runs.report")]),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters.update(FILTERS)
    return made


def markdown(rows: Sequence[StudyRow]) -> str:
    """The rows of whole sections as a Markdown table, in points (0 to 100)."""
    lines = [
        "| arm | against | section | seeds | items | from | to | difference | 95 % interval | seeds' range | p |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        if r.row.category == "all":
            row = r.row
            lines.append(
                f"| {r.arm} | {r.against} | {row.section} | {r.seeds} | {row.n} | {100 * row.before:.1f} "
                f"| {100 * row.after:.1f} | {100 * row.difference:+.1f} "
                f"| {100 * row.ci_low:+.1f} to {100 * row.ci_high:+.1f} "
                f"| {100 * min(r.by_seed):+.1f} to {100 * max(r.by_seed):+.1f} | {row.p_value:.2g} |"
            )
    return "\n".join(lines) + "\n"
