"""Compare two stored scores item by item.

A run folder or a folder of asg eval --out stands for its trained model, or for the base model if it has no other.
Without B: base against trained of A. Scores whose protocols differ are refused, with every difference named.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path

from asg_core.cli.common import add_json, print_json
from asg_core.cli.tables import print_comparison
from asg_core.errors import ConfigError
from asg_core.evaluation.compare import compare
from asg_core.evaluation.protocol import require_same
from asg_core.evaluation.store import AFTER, BEFORE, read_score


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("a", type=Path, metavar="A", help="run folder, folder of asg eval --out, or a file of theirs")
    parser.add_argument("b", type=Path, metavar="B", nargs="?", help="the same")
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Print B minus A with 95 % intervals and p-values."""
    if args.b is None and args.a.is_file():
        raise ConfigError(f"{args.a} alone cannot be compared", "it is one score", "give a folder, or a second score")
    if args.b is None:
        before, after = read_score(args.a, BEFORE), read_score(args.a, AFTER)
    else:
        before, after = read_score(args.a), read_score(args.b)
    require_same(before.protocol, after.protocol)
    rows = [asdict(row) for row in compare(before.items, after.items)]
    if args.json:
        print_json({"before": str(before.file), "after": str(after.file), "rows": rows})
    else:
        print(f"before: {before.file}\nafter:  {after.file}")
        print_comparison(rows)
    return 0
