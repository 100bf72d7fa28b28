"""Plugins for a test, installed as real distributions."""

from __future__ import annotations

import os
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

Install = Callable[..., None]

HEADER = """
from asg_core.backbones.hookspecs import hookimpl
from asg_core.backbones.manifest import BackboneManifest, Capabilities
def manifest(name, **more):
    return BackboneManifest(
        **{"name": name, "summary": "s", "licence": "MIT", "capabilities": Capabilities(), "weights_embedded": True,
           "factory": f"{__name__}:load"} | more)
"""


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Put a distribution with one module and one entry point on the path, as pip would."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delenv("ASG_DISABLE_PLUGINS", raising=False)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)

    def make(module: str, source: str, entry: str | None = None, *, distribution: str | None = None) -> None:
        (tmp_path / f"{module}.py").write_text(HEADER + textwrap.dedent(source))
        info = tmp_path / f"{distribution or module}-1.2.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution or module}\nVersion: 1.2\n")
        (info / "entry_points.txt").write_text(f"[asg_core]\n{entry or module} = {module}\n")
        monkeypatch.delitem(sys.modules, module, raising=False)

    return make
