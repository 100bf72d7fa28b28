"""``asg eval --preset NAME``: the lmms-eval command for a set of public benchmarks."""

from __future__ import annotations

import argparse

from asg_core.cli.common import print_json
from asg_core.cli.tables import print_table
from asg_lab.presets import load_preset


def run(args: argparse.Namespace) -> int:
    """Print the table of metrics and the command; nothing is evaluated."""
    preset = load_preset(args.preset)
    given = [f"{name}={getattr(args, name)}" for name in ("device", "seed") if getattr(args, name) is not None]
    settings = [*given, *args.overrides]
    if args.json:
        print_json(preset.as_data(args.backbone, args.weights, args.run, settings))
        return 0
    print_table(
        ("metric", "task", "split", "value", "judge", "prompt"),
        [(m.name, m.task, m.split, m.value, m.judge, m.prompt) for m in preset.metrics],
    )
    print("\n" + preset.command(args.backbone, args.weights, args.run, settings))
    return 0
