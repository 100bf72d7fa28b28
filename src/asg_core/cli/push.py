"""``asg push``: publish a run's adapters with their model card."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


def add_parser(verbs: Any) -> None:
    """Add the verb to the parser."""
    parser = verbs.add_parser(
        "push",
        help="publish a run's adapters",
        description="List what would be sent to the Hugging Face hub; with --yes, send it. Read the model card first.",
        allow_abbrev=False,
    )
    parser.add_argument("--run", type=Path, required=True, metavar="DIR", help="a finished run")
    parser.add_argument("--to", required=True, metavar="USER/NAME", help="repository, made if it does not exist")
    parser.add_argument("--public", action="store_true", help="anybody may read it (default: private)")
    parser.add_argument("--yes", action="store_true", help="send; without it nothing leaves this machine")
    parser.set_defaults(handler=run)


def run(args: argparse.Namespace) -> int:
    """Print the files, and the address if they were sent."""
    from asg_core.runs.publish import files_to_publish, publish

    for file in files_to_publish(args.run):
        print(args.run / "adapters" / file)
    if not args.yes:
        print(f"nothing was sent; add --yes to publish these files as {args.to}")
        return 0
    print(publish(args.run, args.to, private=not args.public))
    return 0
