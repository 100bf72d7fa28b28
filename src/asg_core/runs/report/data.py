"""Reading a run folder for the report, whatever state the run was left in.

A run may have been killed while it wrote, so nothing here insists on a complete folder: what cannot be read is left out
and named in :attr:`RunData.problems`, which the report shows.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import yaml

from asg_core.errors import RunFolderError
from asg_core.runs.folder import Record, RunFolder, json_lines, number


@dataclass(frozen=True)
class RunData:
    """What is in a run folder.

    Attributes:
        config_text: config.yaml as written, "" if missing.
        config: config.yaml as data, empty if missing or unreadable.
        metrics: one record per step by rising step; of a step recorded twice (resumed runs) the last record.
        samples: contents of samples/step-*.json by rising step.
        summary: summary.json, None while the run has none.
        quarantine: one record per rejected image.
        problems: sentences about what could not be read.
    """

    config_text: str
    config: Record
    metrics: list[Record]
    samples: list[Record]
    summary: Record | None
    quarantine: list[Record]
    problems: list[str]

    @property
    def evaluation(self) -> list[Record]:
        """Comparison rows of the summary, empty without an evaluation."""
        rows = (self.summary or {}).get("evaluation")
        return [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []


def read_run(path: Path) -> RunData:
    """Read the run folder ``path``.

    Raises:
        RunFolderError: there is no such folder, or it holds neither config.yaml nor metrics.jsonl.
    """
    folder = RunFolder(path)
    if not folder.config.is_file() and not folder.metrics.is_file():
        raise RunFolderError(
            f"no run in {str(path)!r}",
            "it holds neither config.yaml nor metrics.jsonl" if path.is_dir() else "there is no such folder",
            "give the folder that a training run wrote (its out= value)",
        )
    problems: list[str] = []
    config_text = _text(folder.config, problems)
    by_step = {number(record.get("step")): record for record in _records(folder.metrics, problems)}
    samples = [_object(file, problems) for file in sorted(folder.samples.glob("step-*.json"))]
    return RunData(
        config_text=config_text,
        config=_yaml_mapping(config_text, problems),
        metrics=[by_step[step] for step in sorted(step for step in by_step if step is not None)],
        samples=sorted(filter(None, samples), key=lambda sample: number(sample.get("step")) or 0.0),
        summary=_object(folder.summary, problems) if folder.summary.exists() else None,
        quarantine=_records(folder.quarantine, problems),
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
        loaded = json.loads(_text(path, problems))
    except ValueError:
        loaded = None
    if isinstance(loaded, dict):
        return loaded
    problems.append(f"{path.name} is not a JSON object; it was left out.")
    return None


def _records(path: Path, problems: list[str]) -> list[Record]:
    lines = json_lines(_text(path, problems)) if path.exists() else []
    for position, record in enumerate(lines, start=1):
        if record is None and position == len(lines):
            problems.append(f"The last line of {path.name} is incomplete, as after a kill; it was skipped.")
        elif record is None:
            problems.append(f"Line {position} of {path.name} is not a JSON object; it was skipped.")
    return [record for record in lines if record is not None]
