"""``results.json``: what a study found, as data, and read back where the runs behind it are gone."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from asg_core.errors import RunFolderError
from asg_core.evaluation.compare import ComparisonRow
from asg_lab.study.analysis import StudyResult, StudyRow
from asg_lab.study.runner import has_runs
from asg_lab.study.suite import Suite

_COLUMNS = [field.name for field in fields(ComparisonRow)]


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


def stored_result(suite: Suite, out: Path) -> StudyResult | None:
    """What ``results.json`` in ``out`` holds, where no run is there any more; None where runs are, or no rows.

    Raises:
        RunFolderError: the file is of other arms or seeds, or is damaged.
    """
    file = out / "results.json"
    if has_runs(out) or not file.is_file():
        return None
    try:
        found = _from_data(json.loads(file.read_text(encoding="utf-8")))
    except (ValueError, KeyError, TypeError) as error:
        raise unreadable(file, error) from error
    if not found.rows:
        return None
    require_same(suite, found.suite.arms, found.suite.seeds, file)
    return found


def unreadable(file: Path, error: Exception) -> RunFolderError:
    """What to raise where raw rows are damaged."""
    return RunFolderError(f"{file} cannot be read", f"{error!r}", "delete it, and run the study again")


def require_same(suite: Suite, arms: Iterable[str], seeds: Iterable[int], file: Path) -> None:
    """Raise RunFolderError unless ``file`` is of the arms and seeds of ``suite``: it would be written over."""
    held = [*map(repr, arms), *(f"seed {seed}" for seed in set(seeds))]
    asked = [*map(repr, suite.arms), *(f"seed {seed}" for seed in suite.seeds)]
    if set(held) != set(asked):
        raise RunFolderError(
            f"{file} is of other arms or seeds than asked for, and its runs are gone",
            f"only one of the two has {', '.join(sorted(set(held) ^ set(asked)))}",
            "name with --arms and --seeds what the file holds, or give another --out DIR",
        )


def _from_data(data: dict[str, Any]) -> StudyResult:
    """The inverse of :func:`as_data`."""
    return StudyResult(
        Suite.model_validate(data["suite"]),
        tuple(
            StudyRow(r["arm"], r["against"], r["seeds"], ComparisonRow(*(r[c] for c in _COLUMNS)), tuple(r["by_seed"]))
            for r in data["rows"]
        ),
        data["seconds"],
        tuple(data["missing"]),
        {package: tuple(found) for package, found in data["versions"].items()},
    )
