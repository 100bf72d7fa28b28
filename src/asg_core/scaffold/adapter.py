"""The skeleton of a backbone plugin: a complete package that installs, runs and is tested, with its open ends named."""

from __future__ import annotations

import keyword
import re
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from asg_core import __version__
from asg_core.backbones.manifest import PLUGIN_API
from asg_core.errors import ConfigError


def write_adapter(name: str, into: Path) -> Path:
    """Write the package ``asg-<name>``, ``name`` as users will write it after ``backbone=``; returns its folder.

    Raises:
        ConfigError: the name cannot be one, ``into`` is no directory, or the new directory exists.
    """
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or keyword.iskeyword(name):
        raise ConfigError(
            f"{name!r} cannot be the name of a backbone",
            "it becomes a module name and a word on the command line",
            "use lower-case letters, digits and underscores, a letter first",
        )
    if not into.is_dir():
        raise ConfigError(f"cannot write into {into}", "it is not a directory", "create it, or give another one")
    target = into / f"asg-{name.replace('_', '-')}"
    if target.exists():
        raise ConfigError(f"{target} exists", "nothing is overwritten", "choose another name or another --into DIR")
    loader = PackageLoader("asg_core.scaffold", "templates/adapter")
    jinja = Environment(loader=loader, undefined=StrictUndefined, keep_trailing_newline=True)
    words = {
        "name": name,
        "distribution": target.name,
        "package": f"asg_{name}",
        "Name": "".join(part.capitalize() for part in name.split("_")),
        "plugin_api": PLUGIN_API,
        "version": __version__,
    }
    for template in jinja.list_templates():
        file = target / template.replace("NAME", name).removesuffix(".j2")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(jinja.get_template(template).render(words), encoding="utf-8")
    return target
