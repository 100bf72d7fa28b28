"""Train Proposer, Solver and Generator adapters of a frozen model on unlabeled images."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from asg_core.cli.common import INTERRUPTED, add_config, load_config
from asg_core.errors import ConfigError

if TYPE_CHECKING:
    from asg_core.config.schema import RunConfig
    from asg_core.training.trainer import Trainer

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
    """Add the verb's arguments."""
    add_config(parser)


def run(args: argparse.Namespace) -> int:
    """Train; prints the comparison with the base model and where the report is."""
    trainer = _make_trainer(args.overrides)
    summary = trainer.run()
    if trainer.processes.is_main:
        if summary.rows:
            from asg_core.cli.tables import print_comparison

            print_comparison(summary.rows)
        print(f"{summary.steps_done} steps, report: {summary.report}")
    return INTERRUPTED if summary.interrupted else 0


def _make_trainer(words: Sequence[str]) -> Trainer:
    resumed = [word.removeprefix("resume=") for word in words if word.startswith("resume=")]
    others = [word for word in words if not word.startswith("resume=")]
    if resumed and resumed[-1] != "auto":
        return _resume(Path(resumed[-1]), others)
    # the configuration is checked before anything slow is imported
    config = load_config(others)
    if resumed and _was_started(config):
        return _resume(Path(str(config.out)), [f"steps={config.steps}"])
    from asg_core.training.trainer import Trainer

    return Trainer(config)


def _was_started(config: RunConfig) -> bool:
    """Whether ``out`` holds a run with these settings, more or fewer steps aside. ConfigError if with others."""
    from asg_core.runs.configuration import load_run_config

    if config.out is None:
        raise ConfigError("resume=auto does not say which run", "it goes on with the run in out=DIR", "add out=DIR")
    file = config.out / "config.yaml"
    if not file.is_file():
        return False
    found = load_run_config(file).model_dump(exclude={"out", "steps"})
    differing = [key for key, value in config.model_dump(exclude={"out", "steps"}).items() if found[key] != value]
    if differing:
        raise ConfigError(
            f"{config.out} was started with other settings: {', '.join(differing)}",
            "a run goes on with its own configuration; only its number of steps may grow",
            "give the settings it was started with, or another out=DIR",
        )
    return True


def _resume(folder: Path, others: Sequence[str]) -> Trainer:
    steps = None
    for word in others:
        if not word.startswith("steps="):
            raise ConfigError(
                f"{word!r} cannot be changed in a resumed run",
                "a run goes on with its own configuration; only its number of steps may grow",
                "leave it out, or start a new run",
            )
        number = word.removeprefix("steps=")
        if not number.isdecimal() or int(number) < 1:
            raise ConfigError(f"{word} cannot be used", "steps must be a whole number >= 1", "e.g. steps=200")
        steps = int(number)
    from asg_core.training.trainer import Trainer

    return Trainer.resume(folder, steps)
