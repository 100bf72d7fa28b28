"""Backbones that the repository of asg_core holds as packages of their own, so that a missing one says how to get it.

Data for messages: nothing is loaded, and nothing else decided, by these names.
"""

from __future__ import annotations

from collections.abc import Collection

from asg_core.errors import did_you_mean, nearest

FOLDERS = {
    "bagel": "plugins/asg_bagel",
    "blip3o": "plugins/asg_blip3o",
    "vargpt": "plugins/asg_vargpt",
    "janus": "examples/custom_adapter",
}
"""Backbone -> folder of its package in the repository."""


def how_to_get(backbone: str, installed: Collection[str]) -> str:
    """What to do about a backbone that no installed plugin provides: its install line, or that of the nearest name.

    Args:
        backbone: the name that was asked for.
        installed: backbones that can be used.
    """
    near = nearest(backbone, {*installed, *FOLDERS})
    if near not in FOLDERS or near in installed:
        return f"{did_you_mean(backbone, installed)} asg plugins lists what is installed."
    line = f"In the folder of asg-core's repository: pip install ./{FOLDERS[near]}"
    return line if near == backbone else f"Did you mean {near!r}? {line}"
