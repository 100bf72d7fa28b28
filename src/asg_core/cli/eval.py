"""Evaluate the base model; with --run, compare the trained model with it on the same items."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path

from asg_core.backbones.registry import find_extension, load_extension, resolve
from asg_core.cli.common import add_json, add_model_options, at_least_one, open_model, print_json, progress_bar
from asg_core.cli.tables import print_comparison, print_scores
from asg_core.evaluation.compare import compare, score_rows
from asg_core.evaluation.items import EvalItem, EvaluationRequest
from asg_core.evaluation.protocol import evaluation_protocol
from asg_core.evaluation.store import AFTER, BEFORE, new_folder, store


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--limit", type=at_least_one, metavar="N", help="at most N items per section (default: all)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="new folder for rows and protocol, for asg compare")
    parser.add_argument("--suite", metavar="NAME", help="another evaluation: easy_vqa (asg-lab; docs/datasets.md)")
    parser.add_argument("--preset", metavar="NAME", help="only print an lmms-eval command by name: paper (asg-lab)")
    add_model_options(parser)
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Evaluate and print scores, or differences with 95 % intervals and paired p-values."""
    if args.preset is not None:
        return int(load_extension("option", "eval --preset")(args))
    chosen = find_extension("suite", args.suite) if args.suite else None
    if args.out is not None:
        new_folder(args.out)
    model = open_model(args)
    instead = "score it on public benchmarks: asg eval --preset paper prints how"
    target = chosen.target if chosen else model.backbone.manifest.target("evaluation", instead)

    def evaluated(trained: bool) -> list[EvalItem]:
        with progress_bar(f"evaluating {'trained' if trained else 'base'}") as progress:
            request = EvaluationRequest(model.backbone, trained, model.config.seed, args.limit, progress)
            items: list[EvalItem] = resolve(target)(request)
        if args.out is not None:
            packages = chosen.packages if chosen else ()
            protocol = evaluation_protocol(target, request, items, model.config, packages)
            store(args.out, AFTER if trained else BEFORE, items, protocol)
        return items

    before = evaluated(False)
    rows = [asdict(row) for row in (compare(before, evaluated(True)) if model.trained else score_rows(before))]
    if args.json:
        print_json({"backbone": model.config.backbone, "seed": model.config.seed, "rows": rows})
    else:
        (print_comparison if model.trained else print_scores)(rows)
    return 0
