"""Reading a run folder for the report, whatever state the run was left in.

A run may have been killed while it wrote, so nothing here insists on a complete folder: what cannot be read is left out
and named in :attr:`RunData.problems`, which the report shows.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from asg_core.errors import RunFolderError

Record = dict[str, Any]


@dataclass(frozen=True)
class RunData:
    """What is in a run folder.

    Attributes:
        folder: the run folder.
        config_text: config.yaml as written, "" if missing.
        config: config.yaml as data, empty if missing or unreadable.
        metrics: one record per step by rising step; of a step recorded twice (resumed runs) the last record.
        samples: contents of samples/step-*.json by rising step.
        summary: summary.json, None while the run has none.
        quarantine: one record per rejected image.
        problems: sentences about what could not be read.
    """

    folder: Path
    config_text: str = ""
    config: Record = field(default_factory=dict)
    metrics: list[Record] = field(default_factory=list)
    samples: list[Record] = field(default_factory=list)
    summary: Record | None = None
    quarantine: list[Record] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def evaluation(self) -> list[Record]:
        """Comparison rows of the summary, empty without an evaluation."""
        rows = (self.summary or {}).get("evaluation")
        return [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []


def number(value: object) -> float | None:
    """``value`` as a float, None unless it is a finite number (null, NaN, text and booleans are no numbers)."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def read_run(folder: Path) -> RunData:
    """Read ``folder``.

    Raises:
        RunFolderError: there is no such folder, or it holds neither config.yaml nor metrics.jsonl.
    """
    if not (folder / "config.yaml").is_file() and not (folder / "metrics.jsonl").is_file():
        raise RunFolderError(
            f"no run in {str(folder)!r}",
            "it holds neither config.yaml nor metrics.jsonl" if folder.is_dir() else "there is no such folder",
            "give the folder that a training run wrote (its out= value)",
        )
    problems: list[str] = []
    config_text = _text(folder / "config.yaml", problems)
    summary = _object(folder / "summary.json", problems) if (folder / "summary.json").exists() else None
    return RunData(
        folder=folder,
        config_text=config_text,
        config=_yaml_mapping(config_text, problems),
        metrics=_metrics(folder / "metrics.jsonl", problems),
        samples=_samples(folder / "samples", problems),
        summary=summary,
        quarantine=_records(folder / "quarantine.jsonl", problems),
        problems=problems,
    )


def _text(path: Path, problems: list[str]) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        problems.append(f"{path.name} could not be read: {error.strerror}.")
        return ""


def _yaml_mapping(text: str, problems: list[str]) -> Record:
    try:
        loaded = yaml.safe_load(text)
    except yaml.YAMLError:
        problems.append("config.yaml is not valid YAML; it is shown as it is.")
        return {}
    return loaded if isinstance(loaded, dict) else {}


def _object(path: Path, problems: list[str]) -> Record | None:
    try:
        loaded = json.loads(_text(path, problems) or "null")
    except json.JSONDecodeError:
        loaded = None
    if isinstance(loaded, dict):
        return loaded
    problems.append(f"{path.name} is not a JSON object; it was left out.")
    return None


def _records(path: Path, problems: list[str]) -> list[Record]:
    if not path.exists():
        return []
    records: list[Record] = []
    lines = _text(path, problems).splitlines()
    for index, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            record = None
        if isinstance(record, dict):
            records.append(record)
        elif index == len(lines):
            problems.append(f"The last line of {path.name} is incomplete, as after a kill; it was skipped.")
        else:
            problems.append(f"Line {index} of {path.name} is not a JSON object; it was skipped.")
    return records


def _metrics(path: Path, problems: list[str]) -> list[Record]:
    by_step: dict[float, Record] = {}
    for record in _records(path, problems):
        step = number(record.get("step"))
        if step is not None:
            by_step[step] = record
    return [by_step[step] for step in sorted(by_step)]


def _samples(folder: Path, problems: list[str]) -> list[Record]:
    found = (_object(path, problems) for path in sorted(folder.glob("step-*.json")))
    return sorted((s for s in found if s is not None), key=lambda sample: number(sample.get("step")) or 0.0)
