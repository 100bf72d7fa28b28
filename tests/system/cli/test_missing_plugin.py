"""A backbone of this repository whose package is not installed is answered with the line that installs it."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from asg_core.backbones import registry as plugins
from asg_core.backbones.known_plugins import FOLDERS, LAB, LAB_FOLDER
from asg_core.cli import main
from asg_core.errors import PluginError

ROOT = Path(__file__).resolve().parents[3]
README = (ROOT / "README.md").read_text(encoding="utf-8")

HIDE = """
import importlib.metadata as metadata, sys
every = metadata.entry_points
def without_plugins(**selected):
    return [entry for entry in every(**selected) if entry.group != "asg_core" or entry.dist.name == "asg-core"]
metadata.entry_points = without_plugins
sys.modules.update(dict.fromkeys(["asg_bagel", "asg_blip3o", "asg_vargpt", "asg_janus", "asg_lab"]))
"""
"""For an environment that has them, such as a developer's; in tox' environment of the core it hides nothing."""


@pytest.fixture
def nothing_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    own = [entry for entry in plugins._entries() if entry.dist and entry.dist.name == plugins.OWN_DISTRIBUTION]
    monkeypatch.setattr(plugins, "_entries", lambda: own)
    monkeypatch.delenv("ASG_DISABLE_PLUGINS", raising=False)


def test_the_readmes_line_says_how_to_install_what_it_needs(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(HIDE)
    (line,) = re.findall(r"^asg train backbone=.*$", README, re.MULTILINE)
    backbone = re.search(r"backbone=(\w+)", line)
    assert backbone is not None
    path = [str(Path(sys.executable).parent), os.environ["PATH"]]
    modules = [str(tmp_path), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PATH": os.pathsep.join(path), "PYTHONPATH": os.pathsep.join(modules)}
    done = subprocess.run(line, shell=True, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == PluginError.exit_code, done.stderr
    assert done.stdout == ""
    install = f"pip install ./{FOLDERS[backbone[1]]}"
    assert done.stderr.endswith(f"repository: {install}\n")
    assert re.search(rf"^{re.escape(install)}$", README, re.MULTILINE), "README says the same"


VERBS = [
    "train backbone={}",
    "train {}.yaml",
    "train resume=run",
    "plan backbone={}",
    "config backbone={}",
    "check {}",
    "parity {} --fixture golden",
    "ask photo.png --backbone {}",
    "solve photo.png 'Is it red?' --backbone {}",
    "generate 'a red kite' --backbone {}",
    "eval --backbone {}",
    "eval --run run",
    "ask photo.png --run run",
    "export --run run --to merged",
]


@pytest.mark.usefixtures("nothing_installed")
@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_that_needs_a_backbone_says_it(
    verb: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], scenes: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("photo.png").write_bytes(next(scenes.glob("*.png")).read_bytes())
    Path("run").mkdir()
    for name in FOLDERS:
        Path(f"{name}.yaml").write_text(f"backbone: {name}\n")
        Path("run/config.yaml").write_text(f"backbone: {name}\n")
        assert main(shlex.split(verb.format(name))) == PluginError.exit_code
        out, err = capsys.readouterr()
        assert out == ""
        assert f"backbone {name!r} is not installed" in err
        assert err.endswith(f"pip install ./{FOLDERS[name]}\n")


EXTENSION_USES = [
    "study",
    "study gains --no-run",
    "study --help",
    "generate --prompts prompts.txt --layout lmms",
    "generate --layout geneval",
    "eval --suite easy_vqa",
    "eval --preset paper",
]


@pytest.mark.usefixtures("nothing_installed")
@pytest.mark.parametrize("use", EXTENSION_USES)
def test_what_the_lab_adds_to_the_command_line_says_how_to_install_it(
    use: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(shlex.split(use)) == PluginError.exit_code
    out, err = capsys.readouterr()
    assert out == ""
    assert "is not installed" in err
    assert err.endswith(f"In the folder of asg-core's repository: pip install ./{LAB_FOLDER}\n")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("nothing_installed")
@pytest.mark.parametrize(
    ("name", "said", "unsaid"),
    [
        ("bagle", ["Did you mean 'bagel'?", "pip install ./plugins/asg_bagel"], []),
        ("tinny", ["Did you mean 'tiny'?", "asg plugins"], ["pip install"]),
        ("qwen", ["Known: tiny, tiny_flow.", "asg plugins"], ["pip install"]),
    ],
)
def test_other_names_are_answered_with_the_nearest_one(name: str, said: list[str], unsaid: list[str]) -> None:
    with pytest.raises(PluginError) as raised:
        plugins.find_manifest(name)
    assert all(part in raised.value.fix for part in said)
    assert not any(part in raised.value.fix for part in unsaid)


def test_the_install_lines_are_those_of_the_packages_in_this_repository() -> None:
    found = {}
    for file in [*ROOT.glob("plugins/*/pyproject.toml"), *ROOT.glob("examples/*/pyproject.toml")]:
        project = tomllib.loads(file.read_text(encoding="utf-8"))["project"]
        folder = file.parent.relative_to(ROOT).as_posix()
        found |= dict.fromkeys(project["entry-points"]["asg_core"], folder)
    assert found == {**FOLDERS, LAB: LAB_FOLDER}
