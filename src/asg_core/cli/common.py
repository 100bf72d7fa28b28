"""What the verbs share: options that several of them have, and loading what those options describe."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from asg_core.config.schema import RunConfig
from asg_core.runs.opening import OpenedModel
from asg_core.runs.opening import open_model as open_with


def add_overrides(parser: argparse.ArgumentParser, *, file: bool = False) -> None:
    """The trailing ``key=value`` words; with ``file`` what :func:`load_config` takes."""
    settings = "settings, e.g. solve.temperature=0.7; asg config prints all of them with their meaning"
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="CONFIG.yaml | key=value" if file else "key=value",
        help=f"a configuration file first, then {settings}" if file else settings,
    )


def add_json(parser: argparse.ArgumentParser) -> None:
    """The ``--json`` flag of verbs that scripts call."""
    parser.add_argument("--json", action="store_true", help="print JSON for scripts")


def load_config(words: Sequence[str]) -> RunConfig:
    """What settings describe, and a file if the first word is none of them. Raises ConfigError, PluginError."""
    from asg_core.runs.configuration import load_run_config

    if words and "=" not in words[0]:
        return load_run_config(Path(words[0]), words[1:])
    return load_run_config(None, words)


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Options and trailing settings that say which model to load."""
    group = parser.add_argument_group("model")
    group.add_argument("--run", type=Path, metavar="DIR", help="a run folder: its backbone, weights and adapters")
    group.add_argument("--backbone", metavar="NAME", help="installed backbone (default: tiny); asg plugins lists them")
    group.add_argument("--weights", metavar="DIR", help="directory of the model's weights")
    group.add_argument("--device", help="auto, cpu, cuda, cuda:1, mps (default: auto)")
    group.add_argument("--seed", type=int, help="of everything random (default: 0, or the run's)")
    add_overrides(parser)


def open_model(args: argparse.Namespace) -> OpenedModel:
    """Load what :func:`add_model_options` describes: the base model, or with ``--run`` also the run's adapters."""
    return open_with(args.run, [*given_words(args, "backbone", "weights", "device", "seed"), *args.overrides])


def given_words(args: argparse.Namespace, *options: str) -> list[str]:
    """Those of the ``options`` that were given, as ``key=value`` words."""
    given = {option: getattr(args, option) for option in options}
    # JSON text is YAML text, so a path is taken as it is, whatever it looks like
    return [f"{option}={json.dumps(value, ensure_ascii=False)}" for option, value in given.items() if value is not None]


def at_least_one(text: str) -> int:
    """argparse type: a whole number >= 1."""
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not >= 1")
    return number


def print_json(value: Any) -> None:
    """Indented ASCII JSON on stdout; NaN is refused."""
    print(json.dumps(value, indent=2, allow_nan=False))


@contextmanager
def progress_bar(label: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on stderr while it is a terminal; takes (done, total)."""
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task(label, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
