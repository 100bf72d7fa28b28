"""Write a copy of the weights with adapters merged in, which the model's own code can load."""

from __future__ import annotations

import argparse
from pathlib import Path

from asg_core.backbones.interface import Role
from asg_core.backbones.registry import resolve
from asg_core.cli.common import add_model_options, open_model
from asg_core.errors import CapabilityError, ConfigError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--to", type=Path, required=True, metavar="DIR", help="new directory")
    parser.add_argument(
        "--roles",
        nargs="+",
        choices=["proposer", "solver", "generator"],
        default=["solver"],
        help="adapters to merge (default: solver); the plugin refuses roles that change the same weights",
    )
    parser.add_argument("--float32", action="store_true", help="store merged tensors in float32, unrounded")
    add_model_options(parser)


def run(args: argparse.Namespace) -> int:
    if args.run is None:
        raise ConfigError("nothing to export", "no run was given", "add --run DIR, the folder that out= named")
    model = open_model(args)
    instead = "use the adapters of the run folder directly: they are PEFT files"
    target = model.backbone.manifest.target("export", instead)
    if model.config.weights is None:
        raise CapabilityError("there is nothing to merge into", "no directory of weights was loaded", instead)
    roles = [Role(name) for name in args.roles]
    report = resolve(target)(model.backbone, model.config.weights, args.to, roles, float32=args.float32)
    print(f"{report.directory}: {len(report.merged)} tensors merged, {report.copied} copied")
    return 0
