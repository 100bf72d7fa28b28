"""Packages that the repository of asg_core holds beside the core, so that a missing one says how to get it.

Data for messages: nothing is loaded, and nothing else decided, by these names.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from asg_core.errors import did_you_mean, nearest

FOLDERS = {
    "bagel": "plugins/asg_bagel",
    "blip3o": "plugins/asg_blip3o",
    "vargpt": "plugins/asg_vargpt",
    "janus": "examples/custom_adapter",
}
"""Backbone -> folder of its package in the repository."""

LAB = "lab"
LAB_FOLDER = "plugins/asg_lab"
EXTENSIONS = {
    "verb": {"study": "runs with several settings and seeds, compared"},
    "option": {"generate --layout": "folders that outside scorers read", "eval --preset": "public benchmarks"},
    "suite": {"easy_vqa": "a public data set of simple pictures"},
}
"""Kind -> name -> one line, of the extensions that the plugin :data:`LAB` in :data:`LAB_FOLDER` provides."""


def how_to_get(name: str, installed: Collection[str], folders: Mapping[str, str]) -> str:
    """What to do about a name that no installed plugin provides: its install line, or that of the nearest name.

    Args:
        name: what was asked for.
        installed: what can be used.
        folders: name -> folder in the repository, of what could be installed.
    """
    near = nearest(name, {*installed, *folders})
    if near is None or near not in folders or near in installed:
        return f"{did_you_mean(name, installed)} asg plugins lists what is installed."
    line = f"In the folder of asg-core's repository: pip install ./{folders[near]}"
    return line if near == name else f"Did you mean {near!r}? {line}"
