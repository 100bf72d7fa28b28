"""``asg eval``: the backbone's held-out evaluation of the base model, or of base and evolved model, paired."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from asg_core.cli.common import add_json, add_model_options, add_overrides, at_least_one, open_model, print_json


def add_parser(verbs: Any) -> None:
    """Add the verb to the parser."""
    parser = verbs.add_parser(
        "eval",
        help="evaluate a model, or a run against its base",
        description="Evaluate the base model; with --run, compare the evolved model with it on the same items.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--limit", type=at_least_one, metavar="N", help="at most N items per section (default: the whole suite)"
    )
    add_model_options(parser)
    add_json(parser)
    add_overrides(parser)
    parser.set_defaults(handler=run)


def run(args: argparse.Namespace) -> int:
    """Evaluate and print scores, or differences with 95 % intervals and paired p-values."""
    from asg_core.errors import CapabilityError

    model = open_model(args)
    target = model.backbone.manifest.evaluation
    if target is None:
        raise CapabilityError(
            f"backbone {model.config.backbone!r} has no evaluation",
            "its plugin announces none",
            "evaluate it with a benchmark of its own",
        )
    from asg_core.evaluation import EvalItem, EvaluationRequest
    from asg_core.evaluation.compare import compare, score_rows
    from asg_core.plugins import resolve

    suite: Callable[[EvaluationRequest], list[EvalItem]] = resolve(target)

    def evaluated(label: str, evolved: bool) -> list[EvalItem]:
        with _progress(label) as progress:
            return suite(EvaluationRequest(model.backbone, evolved, model.config.seed, args.limit, progress))

    before = evaluated("base", False)
    rows: list[dict[str, Any]]
    if model.evolved:
        rows = [asdict(row) for row in compare(before, evaluated("evolved", True))]
    else:
        rows = [asdict(row) for row in score_rows(before)]
    if args.json:
        print_json({"backbone": model.config.backbone, "seed": model.config.seed, "rows": rows})
        return 0
    from asg_core.cli.tables import print_comparison, print_scores

    (print_comparison if model.evolved else print_scores)(rows)
    return 0


@contextmanager
def _progress(label: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on stderr while it is a terminal."""
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task(f"evaluating {label}", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
