"""Replay every recorded case of a fixture; exit code 1 if one fails or is unknown."""

from __future__ import annotations

import argparse
from pathlib import Path

from asg_core.backbones.registry import find_manifest, resolve
from asg_core.cli.common import add_json, print_json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("backbone", metavar="NAME", help="installed backbone; asg plugins lists them")
    parser.add_argument("--fixture", type=Path, required=True, metavar="DIR", help="manifest.json, cases, checkpoint")
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """One line a case: name, largest absolute error, tolerance; 1 if any failed."""
    target = find_manifest(args.backbone).target("parity", "ask for one that does: asg plugins --json shows them")
    from asg_core.testing.parity import run_parity

    report = run_parity(resolve(target), args.fixture)
    if args.json:
        # infinite errors (wrong shape, unknown case) have no JSON number
        rows = [
            {**vars(c), "error": c.error if c.error < float("inf") else None, "passed": c.passed} for c in report.cases
        ]
        print_json({"backbone": args.backbone, "passed": report.passed, "cases": rows})
    else:
        for c in report.cases:
            print(f"{'ok  ' if c.passed else 'FAIL'} {c.name:60} {c.error:9.2e} <= {c.tolerance:.0e} {c.note}".rstrip())
        failed = sum(not c.passed for c in report.cases)
        print(f"{len(report.cases) - failed} of {len(report.cases)} cases passed")
    return 0 if report.passed else 1
