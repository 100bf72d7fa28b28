"""``asg config``: the configuration as commented YAML."""

from __future__ import annotations

import argparse
from typing import Any


def add_parser(verbs: Any) -> None:
    """Add the verb to the parser."""
    parser = verbs.add_parser(
        "config",
        help="print the configuration with all its keys explained",
        description="Print the configuration that asg train would use with the same words, every key explained.",
        epilog="example: asg config backbone=tiny steps=50 > my.yaml",
        allow_abbrev=False,
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="CONFIG.yaml | key=value", help="a configuration file first, then settings"
    )
    parser.set_defaults(handler=run)


def run(args: argparse.Namespace) -> int:
    """Print it."""
    from asg_core.cli.train import split_config
    from asg_core.runs.configuration import commented_yaml, load_run_config

    print(commented_yaml(load_run_config(*split_config(args.overrides))), end="")
    return 0
