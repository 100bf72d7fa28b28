"""List installed plugins, their backbones and what they add to the command line."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import Any

from asg_core.backbones.registry import PluginRecord, list_plugins
from asg_core.cli.common import add_json, print_json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Print one row per plugin. A broken plugin is listed with its reason and is no failure of this command."""
    records = list_plugins()
    if args.json:
        print_json([as_data(record) for record in records])
    else:
        from asg_core.cli.tables import print_table

        rows = [(r.name, f"{r.distribution} {r.version}", r.state, _provided(r) or str(r.reason)) for r in records]
        print_table(("plugin", "package", "state", "provides"), rows)
    return 0


def as_data(record: PluginRecord) -> dict[str, Any]:
    """One plugin as JSON data, manifests in full."""
    return {
        **vars(record),
        "backbones": [manifest.model_dump(mode="json") for manifest in record.backbones],
        "extensions": [{**asdict(e), "command": e.command} for e in record.extensions],
    }


def _provided(record: PluginRecord) -> str:
    backbones = [f"{m.name}: {m.summary} (weights: {m.licence})" for m in record.backbones]
    return "\n".join([*backbones, *(e.command for e in record.extensions)])
