"""Discovery and isolation of plugins: what they provide, found by name, or answered with the line that installs it.

Each entry point of the group ``asg_core`` is imported on its own. A plugin that cannot be used becomes a
:class:`PluginRecord` that says why; it never hurts another one, and fails a command only when it is the one asked for.
``ASG_DISABLE_PLUGINS=name,name`` blocks plugins by entry point name, ``*`` all but the core's own.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from importlib import import_module
from importlib.metadata import EntryPoint, distributions, entry_points
from typing import Any, Literal, TypeVar

import pluggy

from asg_core.backbones import hookspecs
from asg_core.backbones.hookspecs import Extension, ExtensionKind
from asg_core.backbones.known_plugins import EXTENSIONS, FOLDERS, LAB, LAB_FOLDER, how_to_get
from asg_core.backbones.manifest import PLUGIN_API, BackboneManifest
from asg_core.errors import AsgError, PluginError

DISABLE_VARIABLE = "ASG_DISABLE_PLUGINS"
OWN_DISTRIBUTION = "asg-core"

_Record = TypeVar("_Record", BackboneManifest, Extension)


@dataclass(frozen=True)
class PluginRecord:
    """One entry point and what became of it. A plugin is taken whole or not at all.

    Attributes:
        name: of the entry point.
        distribution, version: of the package that declares it; "?" where its metadata does not say.
        state: "ok"; "blocked" by the environment variable; "broken" (import error, bad manifest, unknown hook);
            "incompatible" (written for another plugin interface); "duplicate" (announces a name that is taken).
        reason: why the state is not "ok".
        backbones, extensions: what it provides; empty unless "ok".
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
    found = [_load(entry, blocked) for entry in _entries()]
    for record in sorted(found, key=lambda r: (r.distribution != OWN_DISTRIBUTION, r.distribution, r.name)):
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
    """The manifest of an installed backbone. Raises PluginError, which says what is wrong with the plugin that was
    meant to provide it, or how to install it."""
    known = {manifest.name: manifest for record in list_plugins() for manifest in record.backbones}
    if name in known:
        return known[name]
    raise _missing(f"backbone {name!r}", name, how_to_get(name, known, FOLDERS))


def installed_extensions(kind: ExtensionKind) -> dict[str, Extension]:
    """The extensions of one kind that usable plugins provide, by name."""
    return {e.name: e for record in list_plugins() for e in record.extensions if e.kind == kind}


def find_extension(kind: ExtensionKind, name: str) -> Extension:
    """The extension that an installed plugin provides. Raises PluginError as :func:`find_manifest` does."""
    known = installed_extensions(kind)
    if name in known:
        return known[name]
    fix = how_to_get(name, known, dict.fromkeys(EXTENSIONS[kind], LAB_FOLDER))
    raise _missing(Extension(kind, name, "").command, LAB if name in EXTENSIONS[kind] else None, fix)


def load_extension(kind: ExtensionKind, name: str) -> Any:
    """The function behind an extension. Raises PluginError as :func:`find_extension` does, or if its import fails."""
    return resolve(find_extension(kind, name).target)


def _missing(what: str, plugin: str | None, fix: str) -> PluginError:
    """Why nothing provides ``what``: the plugin of this name, which is to, cannot be used, or there is none."""
    unusable = [record for record in list_plugins() if record.state != "ok"]
    for record in unusable:
        if record.name == plugin:
            cannot = f"{what} cannot be used: its plugin is {record.state}"
            return PluginError(cannot, str(record.reason), _remedy(record))
    others = "".join(f"; {record.name} is {record.state} ({record.reason})" for record in unusable)
    return PluginError(f"{what} is not installed", f"no usable plugin provides it{others}", fix)


def resolve(target: str) -> Any:
    """The object behind a lazy ``module:name`` of a manifest or an extension. PluginError if the module cannot be
    imported or has no such name."""
    module, _, attribute = target.partition(":")
    with plugin_errors(f"{target!r}, which a plugin names, cannot be imported"):
        return getattr(import_module(module), attribute)


@contextmanager
def plugin_errors(what: str) -> Iterator[None]:
    """Inside, code of a plugin runs: whatever it raises becomes one typed error, which says ``what`` happened."""
    try:
        yield
    except AsgError:
        raise
    except Exception as error:
        fix = "set ASG_DEBUG=1 to see the traceback; if it is not your setup, report it to the plugin's author"
        if isinstance(error, ModuleNotFoundError) and error.name:
            fix = f"install the package that provides the module {error.name!r}, or report it to the plugin's author"
        raise PluginError(what, _one_line(error), fix) from error


def _entries() -> list[EntryPoint]:
    try:
        return list(entry_points(group=hookspecs.PROJECT))
    except Exception:  # noqa: BLE001 - some package's metadata cannot be read, ours or not: take the packages one by one
        found = []
        for distribution in distributions():
            with suppress(Exception):  # this is the one
                found += [entry for entry in distribution.entry_points if entry.group == hookspecs.PROJECT]
        return found


def _load(entry: EntryPoint, blocked: set[str]) -> PluginRecord:
    """Import one plugin in a plugin manager of its own."""
    # while a package is being installed, or after a broken installation, its metadata may not say
    distribution, version = (entry.dist.name, entry.dist.version) if entry.dist else ("?", "?")
    record = PluginRecord(entry.name, distribution or "?", version or "?")
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
        return replace(record, state="broken", reason=_one_line(error))
    foreign = next((m for m in manifests if m.plugin_api != PLUGIN_API), None)
    if foreign is not None:
        wants = f"backbone {foreign.name!r} is for plugin interface {foreign.plugin_api}"
        return replace(record, state="incompatible", reason=f"{wants}, this asg_core has {PLUGIN_API}")
    found = replace(record, backbones=manifests, extensions=extensions)
    names = _announced(found)
    twice = [name for name in names if names.count(name) > 1]
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


def _one_line(error: BaseException) -> str:
    """Type and message of ``error``."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:500]


def _remedy(record: PluginRecord) -> str:
    """What the user can do about a plugin whose state is not "ok"."""
    return {
        "blocked": f"unset {DISABLE_VARIABLE} or take {record.name!r} out of it",
        "incompatible": f"install versions of {record.distribution} and asg-core that fit together",
        "duplicate": f"uninstall one of the two packages; this one is {record.distribution}",
    }.get(record.state, f"reinstall or upgrade {record.distribution}; the others are not affected")
