"""Announces what this package adds to the command line of asg-core. Imports nothing heavy."""

from __future__ import annotations

from asg_core.backbones.hookspecs import Extension, hookimpl


@hookimpl
def asg_extensions() -> list[Extension]:
    """See ``asg_core.backbones.hookspecs``."""
    return [
        Extension("verb", "study", "asg_lab.cli.study:add_parser"),
        Extension("option", "generate --layout", "asg_lab.cli.generate:run"),
        Extension("option", "eval --preset", "asg_lab.cli.preset:run"),
        Extension("suite", "easy_vqa", "asg_lab.easy_vqa:evaluate", packages=("asg-lab", "easy-vqa")),
    ]
