"""Invariants that hold for the source as a whole (docs/paper_map.md and CONTRIBUTING.md name them)."""

from __future__ import annotations

import ast
import re
import tomllib
from pathlib import Path
from typing import get_args

import pytest

import asg_core
import asg_core.method
from asg_core.config.schema import Ablation

SOURCE = Path(asg_core.__file__).parent
FILES = sorted(SOURCE.rglob("*.py"))
BACKBONES = {"tiny", "tiny_flow", "bagel", "blip3o", "vargpt"}


def core_files() -> list[Path]:
    return [f for f in FILES if "tiny" not in f.relative_to(SOURCE).parts]


def test_no_decision_in_the_core_depends_on_which_backbone_it_is() -> None:
    """METHOD's last table, last row: three backbones must not run three algorithms."""
    found = [
        f"{file.name}:{node.lineno}"
        for file in core_files()
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Compare | ast.match_case)
        for constant in ast.walk(node)
        if isinstance(constant, ast.Constant) and constant.value in BACKBONES and "cli" not in file.parts
    ]
    assert found == []


@pytest.mark.parametrize("banned", ["pickle", "marshal", "shelve", "dill", "joblib"])
def test_nothing_imports_a_pickler(banned: str) -> None:
    for file in FILES:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = [a.name for a in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
            module = node.module or "" if isinstance(node, ast.ImportFrom) else ""
            assert banned not in [*(n.split(".")[0] for n in names), module.split(".")[0]], file


def test_no_torch_load_and_no_remote_code() -> None:
    for file in FILES:
        text = file.read_text(encoding="utf-8")
        assert "torch.load(" not in text, file
        assert "trust_remote_code=True" not in text, file


def imported_packages() -> set[str]:
    nodes = [node for file in FILES for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))]
    imported = {a.name.split(".")[0] for node in nodes if isinstance(node, ast.Import) for a in node.names}
    return imported | {(node.module or "").split(".")[0] for node in nodes if isinstance(node, ast.ImportFrom)}


def test_the_core_imports_no_plugin() -> None:
    assert {name for name in imported_packages() if name.startswith("asg_")} == {"asg_core"}


def test_every_declared_dependency_is_imported() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    modules = {"pyyaml": "yaml", "pillow": "PIL"}
    declared = {re.split(r"[<>=]", line)[0] for line in project["dependencies"]}
    imported = imported_packages()
    assert [name for name in declared if modules.get(name, name) not in imported] == []


ROOT = Path(__file__).resolve().parents[2]
TREES = ("src", "plugins", "examples", "benchmarks", "tests", "docs")


def functions(file: Path) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    return [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]


def test_a_file_is_one_idea_and_a_function_one_screen() -> None:
    files = [file for tree in TREES for file in (ROOT / tree).rglob("*.py")] or FILES
    assert [f.name for f in files if len(f.read_text(encoding="utf-8").splitlines()) > 300] == []
    shipped = [file for file in files if "src" in file.parts]
    long = [(f.name, n.name) for f in shipped for n in functions(f) if (n.end_lineno or 0) - n.lineno >= 60]
    assert long == []


def test_steps_take_at_most_five_arguments() -> None:
    for name in ("understanding", "generation"):
        step = next(n for n in functions(SOURCE / "method" / f"{name}.py") if n.name == f"{name}_step")
        assert len(step.args.args) <= 5
        assert not step.args.kwonlyargs


def test_only_the_ablations_know_their_names() -> None:
    """The method asks its variant what differs; a comparison elsewhere would be a second place that decides it."""
    names = set(get_args(Ablation)) - {"none"}
    readers = {SOURCE / "method" / "ablations.py", SOURCE / "config" / "schema.py"}
    found = [
        f"{file.name}:{node.lineno}"
        for file in set(core_files()) - readers
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Compare | ast.match_case)
        for constant in ast.walk(node)
        if isinstance(constant, ast.Constant) and constant.value in names
    ]
    assert found == []


def test_the_public_names() -> None:
    assert sorted(asg_core.__all__) == [
        "AsgError",
        "Backbone",
        "BackboneManifest",
        "Capabilities",
        "CausalBackbone",
        "ImageRequest",
        "ImageSampling",
        "Role",
        "RunConfig",
        "TextRequest",
        "TextSampling",
        "Trainer",
        "hookimpl",
        "list_backbones",
        "load_backbone",
    ]
    assert sorted(asg_core.method.__all__) == [
        "StepContext",
        "generation_step",
        "proposer_reward",
        "solver_rewards",
        "solver_token_entropy",
        "understanding_step",
        "vote",
    ]
    for module in (asg_core, asg_core.method):
        assert all(getattr(module, name).__name__ == name for name in module.__all__ if name != "hookimpl")
