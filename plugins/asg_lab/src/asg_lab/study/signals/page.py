"""What a study of signals leaves behind: raw rows with their tables, the tables for a README, and one page."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from asg_core.runs.folder import write_atomically, write_json
from asg_core.runs.report.formats import decimal
from asg_lab.study.page import environment
from asg_lab.study.results import require_same, unreadable
from asg_lab.study.runner import has_runs
from asg_lab.study.signals.figures import held_out_plots, training_plots
from asg_lab.study.signals.rows import BASE, Asked, Drawn, Referenced, Solved, as_table, from_table
from asg_lab.study.signals.statistics import FEW, Estimate
from asg_lab.study.signals.tables import PHASES, HeldOut, Training, held_out, training
from asg_lab.study.suite import Suite


@dataclass(frozen=True)
class Measured:
    """All raw rows of a study of signals; ``steps`` is the length of the runs of each arm."""

    suite: Suite
    solved: list[Solved]
    asked: list[Asked]
    referenced: list[Referenced]
    drawn: list[Drawn]
    steps: dict[str, int]


def stored_rows(suite: Suite, out: Path) -> Measured | None:
    """What ``signals_rows.json`` in ``out`` holds, where no run is there any more; None where runs are, or no rows
    of one.

    Raises:
        RunFolderError: the file is of other arms or seeds, or is damaged.
    """
    file = out / "signals_rows.json"
    if has_runs(out) or not file.is_file():
        return None
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
        solved = from_table(Solved, raw["solved"])
        asked = from_table(Asked, raw["asked"])
        referenced = from_table(Referenced, raw["referenced"])
        drawn = from_table(Drawn, raw["drawn"])
        steps = {str(arm): int(count) for arm, count in raw["steps"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise unreadable(file, error) from error
    arms = [model for model in _models(solved) if model != BASE]
    if not arms:
        return None
    require_same(suite, arms, {row.seed for row in solved}, file)
    return Measured(suite, solved, asked, referenced, drawn, steps)


def write_signals(measured: Measured, out: Path) -> Path:
    """Write ``signals.json``, ``.md`` and ``.html`` and ``signals_rows.json`` into ``out``; returns the page."""
    solved = {model: [r for r in measured.solved if r.model == model] for model in _models(measured.solved)}
    answers = [held_out(model, rows) for model, rows in solved.items()]
    trainings, plots = [], {}
    for arm, steps in measured.steps.items():
        asked = [r for r in measured.asked if r.model == arm]
        drawn = [r for r in measured.drawn if r.model == arm]
        trainings.append(training(arm, asked, [r for r in measured.referenced if r.model == arm], drawn, steps))
        plots[arm] = training_plots(asked, drawn)
    write_json(
        out / "signals.json",
        {"held_out": [asdict(table) for table in answers], "training": [asdict(table) for table in trainings]},
    )
    raw = {
        "solved": as_table(Solved, measured.solved),
        "asked": as_table(Asked, measured.asked),
        "referenced": as_table(Referenced, measured.referenced),
        "drawn": as_table(Drawn, measured.drawn),
        "steps": measured.steps,
    }
    write_atomically(out / "signals_rows.json", json.dumps(raw, allow_nan=False) + "\n")
    write_atomically(out / "signals.md", markdown(answers, trainings))
    page = (
        environment()
        .get_template("signals.html.j2")
        .render(
            suite=measured.suite,
            answers=answers,
            answer_plots=held_out_plots(answers, solved),
            trainings=trainings,
            plots=plots,
            phases=PHASES,
            few=FEW,
        )
    )
    write_atomically(out / "signals.html", page)
    return out / "signals.html"


def markdown(answers: Sequence[HeldOut], trainings: Sequence[Training]) -> str:
    """All tables in Markdown."""
    lines = ["| model | signal for a wrong majority | questions | wrong | AUROC (95 %) |", "|---|---|---|---|---|"]
    for table in answers:
        lines += [
            f"| {table.model} | {signal}, {which} | {e.n} | {e.positives} | {shown(e)} |"
            for signal, which, e in table.aurocs
        ]
    lines += ["", "| model | majorities right | expected calibration error of f | right, by f |", "|---|---|---|---|"]
    for table in answers:
        bins = ", ".join(f"{b.share:.2f}: {b.right} of {b.n}" for b in table.bins)
        lines.append(f"| {table.model} | {shown(table.right)} | {shown(table.calibration)} | {bins} |")
    for found in trainings:
        lines += ["", f"| {found.model}, in training | {' | '.join(PHASES)} |", "|---" * (1 + len(PHASES)) + "|"]
        lines += [f"| {label} | {' | '.join(map(shown, estimates))} |" for label, estimates in found.lines]
    return "\n".join(lines) + "\n"


def shown(estimate: Estimate) -> str:
    """ "0.665 (0.644 to 0.686)"; without an interval "0.764 (too few)"; a dash where nothing was measured."""
    if estimate.value is None:
        return decimal(None)
    if estimate.low is None:
        return f"{decimal(estimate.value)} (too few)"
    return f"{decimal(estimate.value)} ({decimal(estimate.low)} to {decimal(estimate.high)})"


def _models(rows: Sequence[Solved]) -> list[str]:
    return list(dict.fromkeys(row.model for row in rows))
