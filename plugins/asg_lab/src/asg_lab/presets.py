"""Named sets of public benchmarks: which lmms-eval task, split, judge and prompt a metric is, and how to run them."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, PositiveInt

from asg_core.errors import ConfigError, did_you_mean


class Metric(BaseModel):
    """One number: lmms-eval's task and split, the key and scale of its result, who judges, the prompt."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    task: str
    split: str
    value: str
    scale: str
    judge: str
    prompt: str


class Preset(BaseModel):
    """A set of metrics that is run as one lmms-eval command."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    about: str
    checked_with: str
    model_args: Mapping[str, str]
    batch_size: PositiveInt
    metrics: tuple[Metric, ...]

    def command(
        self, backbone: str | None, weights: str | None, run: Path | None, settings: Sequence[str], out: str = "scores"
    ) -> str:
        """The command line that scores a model, quoted for a shell.

        Args:
            backbone, weights, run: as for every verb that loads a model.
            settings: ``key=value`` words.
            out: folder of lmms-eval's results and of protocol.json.

        Raises:
            ConfigError: a value holds a comma, at which lmms-eval would split it.
        """
        named = {"backbone": backbone, "weights": weights, "run": run}
        words = [f"{key}={value}" for key, value in named.items() if value is not None]
        words += [*settings, *(f"{key}={value}" for key, value in self.model_args.items()), f"output_dir={out}"]
        for word in words:
            if "," in word:
                raise ConfigError(
                    f"{word!r} cannot be put into --model_args",
                    "lmms-eval splits them at commas",
                    "put the setting into the configuration of a run, and give --run",
                )
        tasks = ",".join(dict.fromkeys(metric.task for metric in self.metrics))
        words = ["--model_args", ",".join(words), "--tasks", tasks, "--batch_size", str(self.batch_size)]
        return shlex.join(
            ["python", "-m", "lmms_eval", "--model", "asg", *words, "--log_samples", "--output_path", out]
        )

    def as_data(
        self, backbone: str | None, weights: str | None, run: Path | None, settings: Sequence[str]
    ) -> dict[str, Any]:
        """The preset and its command as JSON data."""
        return {**self.model_dump(mode="json"), "command": self.command(backbone, weights, run, settings)}


def load_preset(name: str) -> Preset:
    """A preset of the package. Raises ConfigError if there is none of that name."""
    folder = files("asg_lab").joinpath("preset_data")
    known = [entry.name.removesuffix(".json") for entry in folder.iterdir() if entry.name.endswith(".json")]
    if name not in known:
        raise ConfigError(f"there is no preset {name!r}", "presets come with the package", did_you_mean(name, known))
    return Preset.model_validate(json.loads(folder.joinpath(f"{name}.json").read_text(encoding="utf-8")))
