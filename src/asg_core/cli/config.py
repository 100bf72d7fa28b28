"""Print the configuration that asg train would use with the same words, every key explained."""

from __future__ import annotations

import argparse

from asg_core.cli.common import add_overrides, load_config
from asg_core.runs.configuration import commented_yaml

EXAMPLES = "example: asg config backbone=tiny steps=50 > my.yaml"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_overrides(parser, file=True)


def run(args: argparse.Namespace) -> int:
    print(commented_yaml(load_config(args.overrides)), end="")
    return 0
