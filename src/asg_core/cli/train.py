"""Train Proposer, Solver and Generator adapters of a frozen model on unlabeled images."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from asg_core.cli.common import add_overrides, load_config
from asg_core.cli.tables import print_comparison
from asg_core.config.schema import RunConfig
from asg_core.errors import INTERRUPTED, ConfigError
from asg_core.runs.configuration import load_run_config
from asg_core.runs.folder import run_config_file

if TYPE_CHECKING:
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
    add_overrides(parser, file=True)


def run(args: argparse.Namespace) -> int:
    """Train; prints the comparison with the base model and where the report is."""
    trainer = _make_trainer(args.overrides)
    summary = trainer.run()
    if trainer.processes.is_main:
        if summary.rows:
            print_comparison(summary.rows)
        print(f"{summary.steps_done} steps, report: {summary.report}")
    return INTERRUPTED if summary.interrupted else 0


def _make_trainer(words: Sequence[str]) -> Trainer:
    resumed = [word.removeprefix("resume=") for word in words if word.startswith("resume=")]
    others = [word for word in words if not word.startswith("resume=")]
    # the configuration is checked before anything slow is imported
    if not resumed:
        config, folder = load_config(others), None
    elif resumed[-1] == "auto":
        config = load_config(others)
        folder = _started(config)
    else:
        folder = Path(resumed[-1])
        stored = run_config_file(folder)
        config = load_run_config(stored, others)
        _require_same(config, load_run_config(stored), folder)
    from asg_core.training.trainer import Trainer

    return Trainer(config) if folder is None else Trainer.resume(folder, config.steps)


def _started(config: RunConfig) -> Path | None:
    """``out`` if it holds a run with these settings, more or fewer steps aside. ConfigError if with others."""
    if config.out is None:
        raise ConfigError("resume=auto does not say which run", "it goes on with the run in out=DIR", "add out=DIR")
    file = config.out / "config.yaml"
    if not file.is_file():
        return None
    _require_same(config, load_run_config(file).model_copy(update={"out": config.out}), config.out)
    return config.out


def _require_same(config: RunConfig, started: RunConfig, run: Path) -> None:
    differing = [key for key, value in config if key != "steps" and value != getattr(started, key)]
    if differing:
        raise ConfigError(
            f"{run} was started with other settings: {', '.join(differing)}",
            "a run goes on with its own configuration; only its number of steps may grow",
            "give the settings it was started with or none, or start a new run in another out=DIR",
        )
