"""Checks of what importing and loading a backbone does to the process."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, NoReturn
from unittest import mock

from asg_core.backbones.hookspecs import PROJECT
from asg_core.backbones.registry import list_plugins
from asg_core.testing.conformance.check import check
from asg_core.testing.conformance.subject import Subject
from asg_core.testing.conformance.violations import NotApplicable, expect

_HEAVY = ("torch", "transformers", "diffusers", "peft")
_LISTING = "import json, sys, {module}; print(json.dumps([m for m in {heavy!r} if m in sys.modules]))"
_IMPORTING = """\
import json, socket, sys
tried = []
def refuse(self, address, *rest):
    tried.append(str(address))
    raise OSError("no network in this check")
socket.socket.connect = socket.socket.connect_ex = refuse
import {module}
torch, flash_attn = sys.modules.get("torch"), sys.modules.get("flash_attn")
print(json.dumps({{
    "connections": tried,
    "cuda": torch is not None and torch.cuda.is_initialized(),
    "flash_attn": flash_attn.importer if flash_attn else None,
}}))
"""
# Libraries look whether flash-attn is there by importing it; what counts is who else does.
_STAND_IN = """\
import sys
importer, frame = None, sys._getframe(1)
while frame and importer is None:
    name = frame.f_globals.get("__name__", "").partition(".")[0]
    importer, frame = (name if name not in ("importlib", "") else None), frame.f_back
if importer in ("transformers", "diffusers", "peft", "accelerate", "torch"):
    importer = None
"""


@check(
    "imports.manifest",
    "the plugin's module announces its manifest without importing torch or a model library",
    "name model code in the manifest as 'module:function'; import it nowhere in the plugin module",
)
def _manifest(subject: Subject) -> None:
    heavy = json.loads(_python(_LISTING.format(module=_plugin_module(subject), heavy=_HEAVY)))
    expect(not heavy, f"importing the plugin's module imports {', '.join(heavy)}")


@check(
    "imports.side_effects",
    "importing the model code starts no CUDA, opens no connection and needs no flash-attn",
    "move what the import does into the factory; use scaled_dot_product_attention",
    quick=False,
)
def _side_effects(subject: Subject) -> None:
    module = type(subject.backbone).__module__
    with tempfile.TemporaryDirectory() as folder:
        # An importable stand-in, so that an import of flash-attn is seen wherever this runs.
        (Path(folder) / "flash_attn.py").write_text(_STAND_IN, encoding="utf-8")
        did: dict[str, Any] = json.loads(_python(_IMPORTING.format(module=module), folder))
    expect(not did["connections"], f"importing {module} connects to {', '.join(did['connections'])}")
    expect(not did["cuda"], f"importing {module} initialises CUDA")
    expect(not did["flash_attn"], f"importing {module} imports flash_attn, in {did['flash_attn']}")


@check(
    "imports.offline",
    "loading reads local files only",
    "pass local_files_only=True, or a directory instead of a hub name, to from_pretrained",
)
def _offline(subject: Subject) -> None:
    with _no_network() as tried:
        subject.fresh()
    expect(not tried, f"loading connects to {', '.join(tried)}")


def _plugin_module(subject: Subject) -> str:
    name = subject.backbone.manifest.name
    for record in list_plugins():
        if name in {manifest.name for manifest in record.backbones}:
            (entry,) = entry_points(group=PROJECT, name=record.name)
            return str(entry.module)
    raise NotApplicable(f"no installed plugin announces {name!r}")


def _python(program: str, folder: str = "") -> str:
    if not sys.executable:
        raise NotApplicable("there is no Python executable to start")
    # The folders of this process: code under test that is not installed must be found too.
    path = f"import sys; sys.path[:] = {[folder, *sys.path]!r}\n"
    done = subprocess.run([sys.executable, "-c", path + program], capture_output=True, text=True, check=False)
    expect(done.returncode == 0, f"it cannot be imported: {done.stderr.strip().splitlines()[-1:]}")
    return done.stdout.strip().splitlines()[-1]


@contextmanager
def _no_network() -> Iterator[list[str]]:
    tried: list[str] = []

    def refuse(self: socket.socket, address: object, *rest: object) -> NoReturn:
        tried.append(str(address))
        raise OSError("no network in this check")

    with mock.patch.object(socket.socket, "connect", refuse), mock.patch.object(socket.socket, "connect_ex", refuse):
        yield tried
