"""What the report says of a run, from its folder, whatever state the run was left in.

A run may have been killed while it wrote, so nothing here insists on a complete folder: what cannot be read is left out
and named in :attr:`RunData.problems`, which the report shows.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from asg_core.config.schema import RunConfig
from asg_core.config.validation import flat
from asg_core.errors import RunFolderError
from asg_core.runs.folder import Record, RunFolder, json_lines, number

_NOT_MEASURED = {"step", "kind", "alarms"}


class RunData:
    """What is in the run folder ``path``.

    Attributes:
        config_text: config.yaml as written, "" if missing.
        config: config.yaml as data, empty if missing or unreadable.
        metrics: one record per step by rising step; of a step recorded twice (resumed runs) the last record.
        samples: contents of samples/step-*.json by rising step.
        summary: summary.json, None while the run has none.
        evaluation: comparison rows of the summary, empty without an evaluation.
        quarantine: one record per rejected image.
        problems: sentences about what could not be read.

    Raises:
        RunFolderError: there is no such folder, or it holds neither config.yaml nor metrics.jsonl.
    """

    def __init__(self, path: Path) -> None:
        folder = RunFolder(path)
        if not folder.config.is_file() and not folder.metrics.is_file():
            raise RunFolderError(
                f"no run in {str(path)!r}",
                "it holds neither config.yaml nor metrics.jsonl" if path.is_dir() else "there is no such folder",
                "give the folder that a training run wrote (its out= value)",
            )
        self.problems: list[str] = []
        self.config_text = self._text(folder.config)
        self.config = self._config()
        by_step = {number(record.get("step")): record for record in self._records(folder.metrics)}
        self.metrics = [by_step[step] for step in sorted(step for step in by_step if step is not None)]
        samples = filter(None, map(self._object, sorted(folder.samples.glob("step-*.json"))))
        self.samples = sorted(samples, key=lambda sample: number(sample.get("step")) or 0.0)
        self.summary = self._object(folder.summary) if folder.summary.exists() else None
        rows = (self.summary or {}).get("evaluation")
        self.evaluation = [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []
        self.quarantine = self._records(folder.quarantine)

    def _text(self, path: Path) -> str:
        try:
            return path.read_text(encoding="utf-8", errors="replace")
        except OSError as error:
            self.problems.append(f"{path.name} could not be read: {error.strerror}.")
            return ""

    def _config(self) -> Record:
        try:
            loaded = yaml.safe_load(self.config_text)
        except yaml.YAMLError:
            loaded = None
            self.problems.append("config.yaml is not valid YAML; it is shown as it is.")
        return loaded if isinstance(loaded, dict) else {}

    def _object(self, path: Path) -> Record | None:
        try:
            loaded = json.loads(self._text(path))
        except ValueError:
            loaded = None
        if isinstance(loaded, dict):
            return loaded
        self.problems.append(f"{path.name} is not a JSON object; it was left out.")
        return None

    def _records(self, path: Path) -> list[Record]:
        lines = json_lines(self._text(path)) if path.exists() else []
        for position, record in enumerate(lines, start=1):
            if record is None and position == len(lines):
                self.problems.append(f"The last line of {path.name} is incomplete, as after a kill; it was skipped.")
            elif record is None:
                self.problems.append(f"Line {position} of {path.name} is not a JSON object; it was skipped.")
        return [record for record in lines if record is not None]

    def metric_values(self) -> dict[str, list[float]]:
        """Every numeric metric with a value, in the order of first appearance, on the steps that have it."""
        values: dict[str, list[float]] = {}
        for record in self.metrics:
            for key, value in record.items():
                found = number(value)
                if key not in _NOT_MEASURED and found is not None:
                    values.setdefault(key, []).append(found)
        return values

    def alarm_steps(self) -> dict[str, list[int]]:
        """The steps on which each collapse alarm rang; alarms by first ring."""
        rings: dict[str, list[int]] = {}
        for record in self.metrics:
            for name in record.get("alarms") or []:
                rings.setdefault(str(name), []).append(int(record["step"]))
        return rings


def early_and_late(values: list[float]) -> tuple[float, float]:
    """Means of the first and of the last fifth of ``values``, of one value at least; ``values`` is not empty."""
    fifth = max(1, len(values) // 5)
    return sum(values[:fifth]) / fifth, sum(values[-fifth:]) / fifth


def changed_settings(config: Record, usual: RunConfig | None = None) -> list[tuple[str, Any, Any]]:
    """(dotted key, value, usual value) of every setting in ``config`` that is not; None: asg_core's default."""
    values = flat((usual or RunConfig()).model_dump(mode="json"))
    return [(key, value, values.get(key)) for key, value in flat(config).items() if value != values.get(key)]
