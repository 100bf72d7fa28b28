"""``python examples/pretrain_tiny``: make the embedded base model again, or measure one."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path


def build_parser() -> argparse.ArgumentParser:
    """The arguments; imports nothing heavy."""
    parser = argparse.ArgumentParser(
        prog="python examples/pretrain_tiny", description="The embedded backbone: pre-train it, show its base table."
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    pretrain = verbs.add_parser("pretrain", help="make a base model from nothing (about 10 minutes on one CPU thread)")
    pretrain.add_argument("--out", type=Path, required=True, help="folder for base.safetensors; use it as weights=")
    pretrain.add_argument("--seed", type=int, default=0, help="of initialisation, examples and noise (default 0)")
    pretrain.add_argument("--steps", type=int, default=None, help="optimizer steps (default: as shipped)")
    table = verbs.add_parser("table", help="accuracy per framing and of the vote, drawing score per temperature")
    table.add_argument("--weights", type=Path, default=None, help="folder with base.safetensors (default: as shipped)")
    table.add_argument("--seed", type=int, default=0, help="of the evaluation items (default 0)")
    return parser


def main(argv: Sequence[str]) -> int:
    """Run the command of ``argv`` (without the program name); returns the exit status."""
    arguments = build_parser().parse_args(argv)
    if arguments.verb == "table":
        from pretrain_tiny.table import print_table

        print_table(arguments.weights, arguments.seed)
        return 0
    from pretrain_tiny.pretrain import PretrainSettings, run

    settings = PretrainSettings(seed=arguments.seed, steps=arguments.steps or PretrainSettings().steps)
    print(f"wrote {run(settings, arguments.out)}", file=sys.stderr)
    return 0
