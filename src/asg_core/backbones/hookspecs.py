"""The whole extension surface of asg_core: one hook, found through the entry point group ``asg_core``.

A plugin is a module with a hook implementation and an entry point that names the module::

    # my_plugin.py
    from asg_core.backbones.hookspecs import hookimpl
    from asg_core.backbones.manifest import BackboneManifest, Capabilities

    @hookimpl
    def asg_backbones():
        return [BackboneManifest(name="mine", ..., factory="my_plugin.backbone:load")]

    # pyproject.toml of its distribution
    [project.entry-points.asg_core]
    mine = "my_plugin"

The module is imported whenever plugins are listed, so it must import nothing heavy; the model code behind ``factory``
is imported only when the backbone is loaded. The core's own backbone is registered in exactly this way.
"""

from __future__ import annotations

import pluggy

from asg_core.backbones.manifest import BackboneManifest

PROJECT = "asg_core"
"""Name of the pluggy project and of the entry point group."""

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def asg_backbones() -> list[BackboneManifest]:  # type: ignore[empty-body]
    """The backbones that this plugin provides, as data. Called once per listing; must not import a model.

    Each manifest names the plugin interface it was written for (``plugin_api``); one that differs from
    :data:`asg_core.backbones.manifest.PLUGIN_API` marks the plugin as incompatible, and no other plugin is affected.
    """
