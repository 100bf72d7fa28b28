"""docs/PLUGINS.md lists exactly the modules of the core that plugins import."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "PLUGINS.md"
SOURCES = (
    *(ROOT / "plugins" / name / "src" for name in ("asg_bagel", "asg_blip3o", "asg_vargpt")),
    ROOT / "examples" / "custom_adapter" / "src",
)
TEMPLATES = ROOT / "src" / "asg_core" / "scaffold" / "templates"

pytestmark = pytest.mark.skipif(not SOURCES[0].is_dir(), reason="a source distribution has no plugins")


def imported(source: str) -> set[str]:
    """Modules of the core that Python source imports, at any depth of it."""
    nodes = list(ast.walk(ast.parse(source)))
    names = {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}
    names |= {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    return {name for name in names if name.split(".")[0] == "asg_core"}


def imported_by_plugins() -> set[str]:
    found: set[str] = set()
    for folder in SOURCES:
        for file in folder.rglob("*.py"):
            found |= imported(file.read_text(encoding="utf-8"))
    for file in TEMPLATES.rglob("*.py.j2"):
        found |= imported(re.sub(r"\{\{.*?\}\}", "name", file.read_text(encoding="utf-8")))
    return found


def listed() -> set[str]:
    section = PAGE.read_text(encoding="utf-8").split("## What a plugin imports")[1].split("\n## ")[0]
    return set(re.findall(r"^\| `(asg_core[\w.]*)` \|", section, re.MULTILINE))


def test_the_list_is_what_plugins_import() -> None:
    assert listed() == imported_by_plugins()


@pytest.mark.parametrize("folder", SOURCES, ids=lambda folder: folder.parent.name)
def test_every_plugin_holds_itself_to_the_list(folder: Path) -> None:
    """Its contract allows listed modules only, and import-linter refuses a line that nothing uses."""
    text = (folder.parent / "pyproject.toml").read_text(encoding="utf-8")
    (package,) = (path.name for path in folder.iterdir() if path.name.startswith("asg_") and path.suffix == "")
    allowed = set(re.findall(rf'"{package}\.\*\* -> (asg_core[\w.]*)"', text))
    assert allowed
    assert allowed <= listed()
    command = f"lint-imports --config {(folder.parent / 'pyproject.toml').relative_to(ROOT).as_posix()}"
    assert command in (ROOT / "tox.ini").read_text(encoding="utf-8")
