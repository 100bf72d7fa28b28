"""The whole extension surface of asg_core: two hooks, found through the entry point group ``asg_core``.

A plugin is a module that implements one or both, and an entry point that names the module (docs/PLUGINS.md).
The module is imported whenever plugins are listed, so it must import nothing heavy; what its targets name is imported
only when it is used. The core's own backbone is registered in exactly this way.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import pluggy

from asg_core.backbones.manifest import BackboneManifest

PROJECT = "asg_core"
"""Name of the pluggy project and of the entry point group."""

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)

ExtensionKind = Literal["verb", "option", "suite"]


@dataclass(frozen=True)
class Extension:
    """One thing that a plugin adds to the command line.

    Attributes:
        kind: what ``target`` is called with, and for what:

            * "verb": ``(verbs) -> None`` adds the parser of ``asg NAME`` to argparse's subparsers and sets its
              ``handler``, which takes the parsed arguments and returns the exit code;
            * "option": ``(args) -> int`` takes the parsed arguments of a verb of the core where the option is given,
              and returns the exit code; ``name`` is verb and option, as "generate --layout";
            * "suite": ``(EvaluationRequest) -> list[EvalItem]`` is what ``asg eval --suite NAME`` scores.
        name: unique among the extensions of its kind.
        target: ``module:function``, imported when the extension is used.
        packages: distributions that a suite's scores depend on; their versions go into the protocol of a score.
    """

    kind: ExtensionKind
    name: str
    target: str
    packages: tuple[str, ...] = ()

    @property
    def command(self) -> str:
        """The command line that uses it, without its arguments."""
        return f"asg eval --suite {self.name}" if self.kind == "suite" else f"asg {self.name}"


@hookspec
def asg_backbones() -> list[BackboneManifest]:  # type: ignore[empty-body]
    """The backbones that this plugin provides, as data. Called once per listing; must not import a model.

    Each manifest names the plugin interface it was written for (``plugin_api``); one that differs from
    :data:`asg_core.backbones.manifest.PLUGIN_API` marks the plugin as incompatible, and no other plugin is affected.
    """


@hookspec
def asg_extensions() -> list[Extension]:  # type: ignore[empty-body]
    """What this plugin adds to the command line, as data. Called once per listing; must not import a target."""
