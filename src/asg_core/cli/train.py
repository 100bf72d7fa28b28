"""Train Proposer, Solver and Generator adapters of a frozen model on unlabeled images."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from asg_core.cli.common import add_overrides, load_config
from asg_core.cli.tables import print_comparison
from asg_core.config.schema import RunConfig
from asg_core.errors import INTERRUPTED, ConfigError
from asg_core.runs.configuration import load_run_config
from asg_core.runs.folder import run_config_file

EXAMPLES = """\
examples:
  asg train                                             the embedded model on its own unlabeled images
  asg train images=photos steps=50 out=runs/first       your images
  asg train backbone=bagel weights=BAGEL images=photos  another model
  asg train my.yaml optimizer.lr_solver=1e-4            a file, and values above it
  asg train resume=runs/first steps=100                 go on where a run ended
  asg train my.yaml out=runs/x resume=auto              start, or go on if it was started before: for restarts
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_overrides(parser, file=True)


def run(args: argparse.Namespace) -> int:
    """Train; prints the comparison with the base model and where the report is."""
    config, folder = _chosen(args.overrides)
    from asg_core.training.trainer import Trainer  # takes seconds, so after the configuration has been checked

    trainer = Trainer(config) if folder is None else Trainer.resume(folder, config.steps)
    summary = trainer.run()
    if trainer.processes.is_main:
        if summary.rows:
            print_comparison(summary.rows)
        print(f"{summary.steps_done} steps, report: {summary.report}")
    return INTERRUPTED if summary.interrupted else 0


def _chosen(words: Sequence[str]) -> tuple[RunConfig, Path | None]:
    """The configuration, and the folder of the run to go on with. ConfigError if that was started with another one."""
    resumed = [word.removeprefix("resume=") for word in words if word.startswith("resume=")]
    others = [word for word in words if not word.startswith("resume=")]
    if not resumed:
        return load_config(others), None
    if resumed[-1] == "auto":
        config = load_config(others)
        folder = config.out
        if folder is None:
            raise ConfigError("resume=auto does not say which run", "it goes on with the run in out=DIR", "add out=DIR")
        if not (folder / "config.yaml").is_file():
            return config, None
        started = load_run_config(folder / "config.yaml").model_copy(update={"out": folder})
    else:
        folder = Path(resumed[-1])
        started = load_run_config(run_config_file(folder))
        config = load_run_config(run_config_file(folder), others)
    differing = [key for key, value in config if key != "steps" and value != getattr(started, key)]
    if differing:
        raise ConfigError(
            f"{folder} was started with other settings: {', '.join(differing)}",
            "a run goes on with its own configuration; only its number of steps may grow",
            "give the settings it was started with or none, or start a new run in another out=DIR",
        )
    return config, folder
