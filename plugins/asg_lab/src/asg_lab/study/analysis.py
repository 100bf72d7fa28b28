"""The tables of a study: every arm against its own beginning, and against the reference arm, item by item."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from asg_core.evaluation.compare import ComparisonRow, compare
from asg_core.evaluation.items import EvalItem
from asg_lab.study.runner import is_finished, run_folder_of
from asg_lab.study.suite import Suite


@dataclass(frozen=True)
class StudyRow:
    """One section or category of one comparison.

    Attributes:
        arm: whose "after" it is.
        against: "before" (the same runs' base model), or the name of the arm that it is compared with.
        seeds: how many runs.
        row: pooled over the items of all seeds, paired by seed and item. Its interval covers the choice of items.
        by_seed: the difference of each seed, in the order of the seeds: how much runs differ.
    """

    arm: str
    against: str
    seeds: int
    row: ComparisonRow
    by_seed: tuple[float, ...]


@dataclass(frozen=True)
class StudyResult:
    """What a study found.

    Attributes:
        suite: what was asked.
        rows: of all finished arms.
        seconds: training seconds of each finished run, by "arm-seed".
        missing: runs that are not finished.
        versions: of the packages that the runs used; several values where they differ.
    """

    suite: Suite
    rows: tuple[StudyRow, ...]
    seconds: dict[str, float]
    missing: tuple[str, ...]
    versions: dict[str, tuple[str, ...]]


def analyse(suite: Suite, out: Path) -> StudyResult:
    """Read the finished runs of a study and compare them; what is missing is named, not guessed."""
    runs = {
        arm: {seed: run for seed in suite.seeds if is_finished(run := run_folder_of(out, arm, seed))}
        for arm in suite.arms
    }
    rows: list[StudyRow] = []
    for arm, found in runs.items():
        rows += _rows(arm, "before", {s: (_items(r, "before", s), _items(r, "after", s)) for s, r in found.items()})
    reference = runs[suite.reference]
    for arm, found in runs.items():
        if arm != suite.reference:
            common = {s: r for s, r in found.items() if s in reference}
            pairs = {s: (_items(reference[s], "after", s), _items(r, "after", s)) for s, r in common.items()}
            rows += _rows(arm, suite.reference, pairs)
    summaries = [
        json.loads((r / "summary.json").read_text(encoding="utf-8")) for f in runs.values() for r in f.values()
    ]
    names = [run.name for found in runs.values() for run in found.values()]
    return StudyResult(
        suite,
        tuple(rows),
        {name: float(summary["seconds"]) for name, summary in zip(names, summaries, strict=True)},
        tuple(run_folder_of(out, arm, s).name for arm in suite.arms for s in suite.seeds if s not in runs[arm]),
        {
            package: tuple(sorted({str(summary[package]) for summary in summaries}))
            for package in ("asg_core", "torch", "transformers", "peft")
        },
    )


def _items(run: Path, when: str, seed: int) -> list[EvalItem]:
    """One evaluation of a run, keys made unique across seeds."""
    rows = json.loads((run / "evaluation" / f"{when}.json").read_text(encoding="utf-8"))
    return [EvalItem(r["section"], r["category"], f"{seed}/{r['key']}", r["score"]) for r in rows]


def _rows(arm: str, against: str, pairs: dict[int, tuple[list[EvalItem], list[EvalItem]]]) -> list[StudyRow]:
    if not pairs:
        return []
    single = [_differences(*pair) for pair in pairs.values()]
    pooled = compare(_joined([a for a, _ in pairs.values()]), _joined([b for _, b in pairs.values()]))
    return [
        StudyRow(
            arm, against, len(pairs), row, tuple(s[key] for s in single if (key := (row.section, row.category)) in s)
        )
        for row in pooled
    ]


def _differences(a: Sequence[EvalItem], b: Sequence[EvalItem]) -> dict[tuple[str, str], float]:
    return {(row.section, row.category): row.difference for row in compare(a, b, resamples=1)}


def _joined(lists: Sequence[list[EvalItem]]) -> list[EvalItem]:
    return [item for items in lists for item in items]
