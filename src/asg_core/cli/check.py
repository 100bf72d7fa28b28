"""Run the conformance checks on an installed backbone; exit code 1 if one fails."""

from __future__ import annotations

import argparse
import os
import traceback
from collections import Counter
from functools import partial

from asg_core.cli.common import add_json, add_overrides, given_words, print_json
from asg_core.runs.configuration import load_run_config
from asg_core.runs.opening import load_base

_MARKS = {"passed": "ok", "failed": "FAIL", "skipped": "skip", "expected": "xfail", "unexpected": "XPASS"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("backbone", metavar="NAME", help="installed backbone; asg plugins lists them")
    parser.add_argument("--weights", metavar="DIR", help="directory of its weights, best a tiny checkpoint")
    parser.add_argument("--profile", choices=("quick", "full"), default="full", help="quick leaves out the slow checks")
    parser.add_argument("--only", action="append", default=[], metavar="CHECK", help="run checks whose name starts so")
    parser.add_argument(
        "--expect",
        action="append",
        default=[],
        metavar="CHECK=REASON",
        help="this check is known to fail, and why; it counts as a failure if it passes",
    )
    parser.add_argument(
        "--guidance-off",
        action="append",
        default=[],
        metavar="OPTION=VALUE",
        help="an option of the backbone that switches guidance off while drawing, e.g. rollout.guidance=1",
    )
    add_json(parser)
    add_overrides(parser)


def run(args: argparse.Namespace) -> int:
    """One line a check, with cause and remedy where it failed; 1 unless all are good."""
    from asg_core.testing.conformance import Outcome, check_backbone

    words = [*given_words(args, "backbone", "weights"), *args.overrides]
    config = load_run_config(None, words)
    unguided = [*words, *(f"backbone_options.{word}" for word in args.guidance_off)]

    def show(outcome: Outcome) -> None:
        print(f"{_MARKS[outcome.status]:5} {outcome.check.id:32} {outcome.reason}".rstrip(), flush=True)
        if not outcome.good:
            print(f"      promise: {outcome.check.meaning}\n      remedy:  {outcome.remedy}")
        if outcome.crash is not None and os.environ.get("ASG_DEBUG"):
            traceback.print_exception(outcome.crash)

    report = check_backbone(
        partial(load_base, config),
        expected_failures=dict(word.partition("=")[::2] for word in args.expect),
        profile=args.profile,
        only=args.only,
        guidance_off=load_run_config(None, unguided).backbone_options if args.guidance_off else None,
        each=(lambda outcome: None) if args.json else show,
    )
    if args.json:
        rows = [{"id": o.check.id, "status": o.status, "reason": o.reason} for o in report.outcomes]
        print_json({"backbone": args.backbone, "passed": report.passed, "checks": rows})
    else:
        counts = Counter(outcome.status for outcome in report.outcomes)
        print(", ".join(f"{count} {status}" for status, count in counts.items()))
    return 0 if report.passed else 1
