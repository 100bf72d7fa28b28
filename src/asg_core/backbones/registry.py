"""Discovery and isolation of backbone plugins.

Each entry point of the group ``asg_core`` is imported on its own. A plugin that cannot be used becomes a
:class:`PluginRecord` that says why; it never hurts another one, and fails a command only when it is the one asked for.
``ASG_DISABLE_PLUGINS=name,name`` blocks plugins by entry point name, ``*`` all but the core's own.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from importlib import import_module
from importlib.metadata import EntryPoint, distributions, entry_points
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import pluggy

from asg_core.backbones import hookspecs
from asg_core.backbones.hookspecs import Extension
from asg_core.backbones.known_plugins import how_to_get
from asg_core.backbones.manifest import PLUGIN_API, BackboneManifest
from asg_core.errors import AsgError, PluginError

if TYPE_CHECKING:
    pass

DISABLE_VARIABLE = "ASG_DISABLE_PLUGINS"
OWN_DISTRIBUTION = "asg-core"

_Record = TypeVar("_Record", BackboneManifest, Extension)


@dataclass(frozen=True)
class PluginRecord:
    """One entry point and what became of it. A plugin is taken whole or not at all.

    Attributes:
        name: of the entry point.
        distribution: package that declares it, and its version.
        version: of that package.
        state: "ok"; "blocked" by the environment variable; "broken" (import error, bad manifest, unknown hook);
            "incompatible" (written for another plugin interface); "duplicate" (announces a name that is taken).
        reason: why the state is not "ok".
        backbones: manifests that can be used; empty unless "ok".
        extensions: what it adds to the command line; empty unless "ok".
    """

    name: str
    distribution: str
    version: str
    state: Literal["ok", "blocked", "broken", "incompatible", "duplicate"] = "ok"
    reason: str | None = None
    backbones: tuple[BackboneManifest, ...] = ()
    extensions: tuple[Extension, ...] = ()


def list_plugins() -> list[PluginRecord]:
    """All plugins of this environment: the core's own first, then by package and entry point name."""
    blocked = {name.strip() for name in os.environ.get(DISABLE_VARIABLE, "").split(",")}
    taken: dict[str, str] = {}
    records = []
    for entry in sorted(_entries(), key=_order):
        record = _load(entry, blocked)
        repeated = [name for name in _announced(record) if name in taken]
        if repeated:
            why = f"{repeated[0]} is already provided by {taken[repeated[0]]}"
            record = replace(record, state="duplicate", reason=why, backbones=(), extensions=())
        taken.update(dict.fromkeys(_announced(record), f"plugin {record.name!r} of {record.distribution}"))
        records.append(record)
    return records


def list_backbones() -> list[str]:
    """Return the names of all backbones that can be loaded, in the order of :func:`list_plugins`."""
    return [manifest.name for record in list_plugins() for manifest in record.backbones]


def find_manifest(name: str) -> BackboneManifest:
    """The manifest of an installed backbone.

    Raises:
        PluginError: no usable plugin does; says what is wrong with the one that was meant to, or how to install it.
    """
    records = list_plugins()
    known = {manifest.name: manifest for record in records for manifest in record.backbones}
    if name in known:
        return known[name]
    for record in records:
        if record.name == name and record.state != "ok":
            raise PluginError(
                f"backbone {name!r} cannot be used: its plugin is {record.state}", str(record.reason), remedy(record)
            )
    raise PluginError(f"backbone {name!r} is not installed", nobody_provides_it(records), how_to_get(name, known))


def resolve(target: str) -> Any:
    """The object behind a lazy ``module:name`` of a manifest or an extension.

    Raises:
        PluginError: the module cannot be imported or has no such name.
    """
    module, _, attribute = target.partition(":")
    try:
        return getattr(import_module(module), attribute)
    except AsgError:
        raise
    except Exception as error:  # plugin code: whatever it raises becomes one typed error
        raise PluginError(
            f"{target!r}, which a plugin names, cannot be imported", one_line(error), import_remedy(error)
        ) from error


def _entries() -> list[EntryPoint]:
    try:
        return list(entry_points(group=hookspecs.PROJECT))
    except Exception:  # noqa: BLE001 - some package's metadata cannot be read, ours or not: take the packages one by one
        found = []
        for distribution in distributions():
            try:
                found += [entry for entry in distribution.entry_points if entry.group == hookspecs.PROJECT]
            except Exception:  # noqa: BLE001 - this is the one
                continue
        return found


def _order(entry: EntryPoint) -> tuple[bool, str, str]:
    distribution = _package(entry)[0]
    return distribution != OWN_DISTRIBUTION, distribution, entry.name


def _package(entry: EntryPoint) -> tuple[str, str]:
    """Name and version of the package that declares an entry point; "?" where its metadata does not say."""
    # while a package is being installed, or after a broken installation, both can be None
    name, version = (entry.dist.name, entry.dist.version) if entry.dist else (None, None)
    return str(name or "?"), str(version or "?")


def _load(entry: EntryPoint, blocked: set[str]) -> PluginRecord:
    """Import one plugin in a plugin manager of its own."""
    record = PluginRecord(entry.name, *_package(entry))
    if entry.name in blocked or ("*" in blocked and record.distribution != OWN_DISTRIBUTION):
        return replace(record, state="blocked", reason=f"{DISABLE_VARIABLE} names it")
    try:
        manager = pluggy.PluginManager(hookspecs.PROJECT)
        manager.add_hookspecs(hookspecs)
        plugin = entry.load()
        manager.register(plugin, name=entry.name)
        manager.check_pending()
        if not manager.get_hookcallers(plugin):
            raise TypeError("it implements no hook of asg_core")
        manifests = _answers(manager.hook.asg_backbones(), BackboneManifest, "asg_backbones")
        extensions = _answers(manager.hook.asg_extensions(), Extension, "asg_extensions")
    except (Exception, SystemExit) as error:  # noqa: BLE001 - isolation: a broken plugin must not hurt the others
        return replace(record, state="broken", reason=one_line(error))
    foreign = next((m for m in manifests if m.plugin_api != PLUGIN_API), None)
    if foreign is not None:
        wants = f"backbone {foreign.name!r} is for plugin interface {foreign.plugin_api}"
        return replace(record, state="incompatible", reason=f"{wants}, this asg_core has {PLUGIN_API}")
    found = replace(record, backbones=manifests, extensions=extensions)
    twice = [name for name, count in Counter(_announced(found)).items() if count > 1]
    return replace(record, state="broken", reason=f"it announces {twice[0]} twice") if twice else found


def _answers(lists: Iterable[Any], kind: type[_Record], hook: str) -> tuple[_Record, ...]:
    """What the implementations of one hook returned. TypeError if it is not a list of ``kind``."""
    found = [answer for answers in lists for answer in answers]
    for answer in found:
        if not isinstance(answer, kind):
            raise TypeError(f"{hook} returned {type(answer).__name__}, not {kind.__name__}")
    return tuple(found)


def _announced(record: PluginRecord) -> list[str]:
    """What a plugin provides, in the words of messages: no two plugins may provide the same."""
    return [f"backbone {m.name!r}" for m in record.backbones] + [f"{e.kind} {e.name!r}" for e in record.extensions]


def one_line(error: BaseException) -> str:
    """Return type and message of ``error`` on one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:500]


def import_remedy(error: BaseException) -> str:
    """Return what to do about an error that importing or running a plugin raised."""
    if isinstance(error, ModuleNotFoundError) and error.name:
        return f"install the package that provides the module {error.name!r}, or report it to the plugin's author"
    return "set ASG_DEBUG=1 to see the traceback; if it is not your setup, report it to the plugin's author"


def nobody_provides_it(records: Iterable[PluginRecord]) -> str:
    """Why something is not installed: no plugin has it, and these plugins cannot be used."""
    unusable = [f"{r.name} is {r.state} ({r.reason})" for r in records if r.state != "ok"]
    return "no usable plugin provides it" + "".join(f"; {line}" for line in unusable)


def remedy(record: PluginRecord) -> str:
    """What the user can do about a plugin whose state is not "ok"."""
    return {
        "blocked": f"unset {DISABLE_VARIABLE} or take {record.name!r} out of it",
        "incompatible": f"install versions of {record.distribution} and asg-core that fit together",
        "duplicate": f"uninstall one of the two packages; this one is {record.distribution}",
    }.get(record.state, f"reinstall or upgrade {record.distribution}; the others are not affected")
