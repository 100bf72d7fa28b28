"""Write report.html of a run from its records, finished or not; prints its path."""

from __future__ import annotations

import argparse
from pathlib import Path

from asg_core.runs.folder import run_config_file


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_folder", type=Path, metavar="RUN")


def run(args: argparse.Namespace) -> int:
    run_config_file(args.run_folder)
    from asg_core.runs.report.render import render_report

    print(render_report(args.run_folder))
    return 0
