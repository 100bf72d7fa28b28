"""``asg study``: a grid of configurations and seeds, compared pairwise."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any


def add_parser(verbs: Any) -> None:
    """Add the verb to the parser."""
    parser = verbs.add_parser(
        "study",
        help="runs with several settings and seeds, compared",
        description="Run every arm of a study with every seed in parallel processes, compare them item by item, and "
        "write results.json, table.md and study.html. Repeat the command to go on; finished runs are kept.",
    )
    parser.add_argument("suite", nargs="?", metavar="SUITE", help="a shipped study, or a YAML file; none: list them")
    parser.add_argument("--out", type=Path, metavar="DIR", help="the study's folder (default: studies/<name>)")
    parser.add_argument("--jobs", type=int, metavar="N", help="runs at a time (default: the number of cores)")
    parser.add_argument("--seeds", nargs="+", type=int, default=[], metavar="SEED", help="these seeds only")
    parser.add_argument("--arms", nargs="+", default=[], metavar="ARM", help="these arms only")
    parser.add_argument("--no-run", action="store_true", help="write the tables of what is there")
    parser.set_defaults(handler=run)


def run(args: argparse.Namespace) -> int:
    """Run what is missing and print the table."""
    from asg_core.backbones.registry import resolve
    from asg_lab.study import analyse, load_suite, run_study, shipped_suites, stored_result, write_results
    from asg_lab.study.page import markdown
    from asg_lab.study.suite import MEASURES

    if args.suite is None:
        for name, about in shipped_suites().items():
            print(f"{name:12} {about}")
        return 0
    suite = load_suite(args.suite).narrowed(args.arms, args.seeds)
    out = args.out or Path("studies") / suite.name
    measure = resolve(MEASURES[suite.measure])(suite) if suite.measure else None
    if not args.no_run:
        run_study(suite, out, args.jobs or os.cpu_count() or 1, lambda line: print(line, flush=True))
    result = stored_result(suite, out) or analyse(suite, out)
    page = write_results(result, out)
    print(markdown(result.rows))
    print(f"page: {page}")
    if measure is not None:
        print(f"page: {measure.write(out)}")
    return 0
