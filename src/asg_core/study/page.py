"""What a study leaves behind: raw rows, a table for a README, and one page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from jinja2 import ChoiceLoader, Environment, PackageLoader

from asg_core.report.formats import FILTERS
from asg_core.run_folder import write_atomically, write_json
from asg_core.study.analysis import StudyResult, StudyRow


def write_results(result: StudyResult, out: Path) -> Path:
    """Write ``results.json``, ``table.md`` and ``study.html`` into ``out``; returns the page."""
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "results.json", as_data(result))
    write_atomically(out / "table.md", markdown(result.rows))
    against = dict.fromkeys(row.against for row in result.rows)
    reach = max((abs(x) for r in result.rows for x in (r.row.ci_low, r.row.ci_high)), default=1.0) or 1.0
    page = (
        environment()
        .get_template("study.html.j2")
        .render(
            result=result,
            tables={name: [r for r in result.rows if r.against == name] for name in against},
            place=lambda value: round(50 + 50 * value / reach, 2),
            reach=reach,
        )
    )
    write_atomically(out / "study.html", page)
    return out / "study.html"


def environment() -> Environment:
    """Templates of studies and what they share with the report."""
    made = Environment(
        loader=ChoiceLoader([PackageLoader("asg_core.study"), PackageLoader("asg_core.report")]),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters.update(FILTERS)
    return made


def as_data(result: StudyResult) -> dict[str, object]:
    """The result as plain data for JSON."""
    return {
        "suite": result.suite.model_dump(mode="json"),
        "versions": result.versions,
        "seconds": result.seconds,
        "missing": list(result.missing),
        "rows": [
            {"arm": r.arm, "against": r.against, "seeds": r.seeds, **asdict(r.row), "by_seed": list(r.by_seed)}
            for r in result.rows
        ],
    }


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
