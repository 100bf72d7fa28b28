"""Write the skeleton of a package."""

from __future__ import annotations

import argparse
from pathlib import Path

from asg_core.scaffold.adapter import write_adapter


def add_arguments(parser: argparse.ArgumentParser) -> None:
    kinds = parser.add_subparsers(metavar="KIND", dest="kind", required=True)
    adapter = kinds.add_parser(
        "adapter",
        help="a backbone plugin for your own model",
        description="Write a backbone plugin that installs, runs text-only on a tiny random model, and is tested; "
        "its README lists what is left to write.",
    )
    adapter.add_argument("name", metavar="NAME", help="of the backbone: lower-case letters, digits, underscores")
    adapter.add_argument("--into", type=Path, default=Path(), metavar="DIR", help="where (default: here)")


def run(args: argparse.Namespace) -> int:
    """Write the files and say what to do next."""
    folder = write_adapter(args.name, args.into)
    print(f"wrote {folder}; next:\n  pip install -e {folder}\n  pytest {folder}")
    print(f"  and go on as {folder / 'README.md'} says")
    return 0
