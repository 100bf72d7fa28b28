"""What the verbs share: options of verbs that load a model, and how a model is loaded from them."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from asg_core.errors import RunFolderError
from asg_core.runs.folder import run_config_file
from asg_core.runs.opening import OpenedModel
from asg_core.runs.opening import open_model as open_with

__all__ = [
    "INTERRUPTED",
    "OpenedModel",
    "add_json",
    "add_model_options",
    "add_overrides",
    "at_least_one",
    "open_model",
    "print_json",
    "progress_bar",
    "run_config_file",
    "unwritable",
]

INTERRUPTED = 130
"""Exit code after Ctrl-C."""


def add_overrides(parser: argparse.ArgumentParser) -> None:
    """The trailing ``key=value`` words."""
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="settings, e.g. solve.temperature=0.7; asg config lists them"
    )


def add_json(parser: argparse.ArgumentParser) -> None:
    """The ``--json`` flag of verbs that scripts call."""
    parser.add_argument("--json", action="store_true", help="print JSON for scripts")


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Options that say which model to load."""
    group = parser.add_argument_group("model")
    group.add_argument(
        "--run", type=Path, metavar="DIR", help="a run folder: its backbone, weights and trained adapters"
    )
    group.add_argument("--backbone", metavar="NAME", help="installed backbone (default: tiny); asg plugins lists them")
    group.add_argument("--weights", metavar="DIR", help="directory of the model's weights")
    group.add_argument("--device", help="auto, cpu, cuda, cuda:1, mps (default: auto)")
    group.add_argument("--seed", type=int, help="of everything random (default: 0, or the run's)")


def open_model(args: argparse.Namespace) -> OpenedModel:
    """Load what :func:`add_model_options` describes: the base model, or with ``--run`` also the run's adapters.

    Raises:
        ConfigError, PluginError, WeightsError, RunFolderError.
    """
    names = ("backbone", "weights", "device", "seed")
    # JSON text is YAML text, so a path is taken as it is, whatever it looks like
    given = [f"{n}={json.dumps(getattr(args, n), ensure_ascii=False)}" for n in names if getattr(args, n) is not None]
    return open_with(args.run, [*given, *args.overrides])


def at_least_one(text: str) -> int:
    """argparse type: a whole number >= 1."""
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not >= 1")
    return number


def print_json(value: Any) -> None:
    """Indented ASCII JSON on stdout; NaN is refused."""
    print(json.dumps(value, indent=2, allow_nan=False))


def unwritable(out: Path, error: OSError) -> RunFolderError:
    """What to raise where the folder of ``--out`` cannot be written."""
    return RunFolderError(
        f"--out {out} cannot be used", error.strerror or str(error), "choose a folder that you may write"
    )


@contextmanager
def progress_bar(label: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on stderr while it is a terminal; takes (done, total)."""
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task(label, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
