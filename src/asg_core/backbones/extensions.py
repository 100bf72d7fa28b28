"""What plugins add to the command line: found by name, or answered with the line that installs it."""

from __future__ import annotations

from typing import Any

from asg_core.backbones.hookspecs import Extension, ExtensionKind
from asg_core.backbones.known_plugins import EXTENSIONS, LAB, how_to_get_extension
from asg_core.backbones.registry import list_plugins, nobody_provides_it, remedy, resolve
from asg_core.errors import PluginError


def installed_extensions(kind: ExtensionKind) -> dict[str, Extension]:
    """The extensions of one kind that usable plugins provide, by name."""
    return {e.name: e for record in list_plugins() for e in record.extensions if e.kind == kind}


def find_extension(kind: ExtensionKind, name: str) -> Extension:
    """The extension that an installed plugin provides.

    Raises:
        PluginError: no usable plugin does; says what is wrong with the one that was meant to, or how to install it.
    """
    known = installed_extensions(kind)
    if name in known:
        return known[name]
    records = list_plugins()
    command = Extension(kind, name, "").command
    for record in records:
        if record.name == LAB and name in EXTENSIONS[kind] and record.state != "ok":
            raise PluginError(
                f"{command} cannot be used: its plugin is {record.state}", str(record.reason), remedy(record)
            )
    raise PluginError(
        f"{command} is not installed", nobody_provides_it(records), how_to_get_extension(kind, name, known)
    )


def load_extension(kind: ExtensionKind, name: str) -> Any:
    """The function behind an extension. Raises PluginError as :func:`find_extension` does, or if its import fails."""
    return resolve(find_extension(kind, name).target)
