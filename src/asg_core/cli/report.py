"""``asg report``: write the report of a run again."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


def add_parser(verbs: Any) -> None:
    """Add the verb to the parser."""
    parser = verbs.add_parser(
        "report",
        help="write a run's report again",
        description="Write report.html of a run from its records, finished or not; prints its path.",
        allow_abbrev=False,
    )
    parser.add_argument("run_folder", type=Path, metavar="RUN")
    parser.set_defaults(handler=run)


def run(args: argparse.Namespace) -> int:
    """Render and print the path."""
    from asg_core.cli.common import run_config_file

    run_config_file(args.run_folder)
    from asg_core.runs.report import render_report

    print(render_report(args.run_folder))
    return 0
