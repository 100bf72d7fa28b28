"""The skeleton of a plugin: complete, valid, refused where it would do harm. Its own tests run in CI, installed."""

from __future__ import annotations

import ast
import tomllib
from pathlib import Path

import pytest

from asg_core.backbones.interface import Backbone
from asg_core.backbones.manifest import PLUGIN_API
from asg_core.cli import main
from asg_core.errors import ConfigError
from asg_core.scaffold.adapter import write_adapter


@pytest.fixture
def package(tmp_path: Path) -> Path:
    return write_adapter("my_model", tmp_path)


def test_every_file_of_a_package_is_there(package: Path):
    assert package.name == "asg-my-model"
    found = {str(file.relative_to(package)) for file in package.rglob("*") if file.is_file()}
    modules = {"__init__", "plugin", "options", "text", "backbone", "tiny_checkpoint"}
    code = {f"src/asg_my_model/{module}.py" for module in modules} | {"src/asg_my_model/py.typed"}
    assert found == {"pyproject.toml", "tox.ini", "README.md", "tests/test_conformance.py", *code}


def test_no_placeholder_is_left_and_every_module_parses(package: Path):
    for file in (f for f in package.rglob("*") if f.is_file()):
        text = file.read_text(encoding="utf-8")
        assert "{{" not in text, file
        assert "NAME" not in text.replace("backbone_options", ""), file
        if file.suffix == ".py":
            ast.parse(text)


def test_the_entry_point_names_the_manifest_module(package: Path):
    project = tomllib.loads((package / "pyproject.toml").read_text())["project"]
    assert project["entry-points"]["asg_core"] == {"my_model": "asg_my_model.plugin"}
    assert f"plugin_api={PLUGIN_API}" in (package / "src/asg_my_model/plugin.py").read_text()


def test_what_the_shared_base_class_does_not_do_is_in_the_skeleton(package: Path):
    from asg_core.models.causal import CausalBackbone

    tree = ast.parse((package / "src/asg_my_model/backbone.py").read_text())
    (backbone,) = (node for node in tree.body if isinstance(node, ast.ClassDef))
    methods = {node.name: ast.get_docstring(node) for node in backbone.body if isinstance(node, ast.FunctionDef)}
    assert set(CausalBackbone.__abstractmethods__) <= set(methods)
    assert all(methods[name] for name in CausalBackbone.__abstractmethods__)
    assert set(Backbone.__abstractmethods__) - set(methods) == {
        name for name in Backbone.__abstractmethods__ if name in vars(CausalBackbone)
    }


@pytest.mark.parametrize("name", ["Mine", "9lives", "with-dash", "class", "", "../up", "a b"])
def test_a_name_that_cannot_be_a_module_is_refused(name: str, tmp_path: Path):
    with pytest.raises(ConfigError):
        write_adapter(name, tmp_path)
    assert not list(tmp_path.iterdir())


def test_nothing_is_overwritten(package: Path):
    (package / "README.md").write_text("mine")
    with pytest.raises(ConfigError, match="exists"):
        write_adapter("my_model", package.parent)
    assert (package / "README.md").read_text() == "mine"


def test_the_command_writes_and_says_what_comes_next(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["new", "adapter", "mine", "--into", str(tmp_path)]) == 0
    assert f"pip install -e {tmp_path / 'asg-mine'}" in capsys.readouterr().out
    assert main(["new", "adapter", "mine", "--into", str(tmp_path / "nowhere")]) == 2
