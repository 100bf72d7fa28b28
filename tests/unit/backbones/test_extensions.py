"""What a plugin adds to the command line works when it is asked for, and only then is its code imported."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from asg_core.backbones import registry
from asg_core.backbones.hookspecs import ExtensionKind
from asg_core.backbones.known_plugins import EXTENSIONS, LAB_FOLDER
from asg_core.backbones.registry import find_extension
from asg_core.cli import main
from asg_core.errors import PluginError

Install = Callable[..., None]

PLAY = """
from asg_core.backbones.hookspecs import Extension
import sys

@hookimpl
def asg_extensions():
    return [
        Extension("verb", "play", "play_verb:add_parser"),
        Extension("suite", "cards", "play_verb:evaluate", packages=("play", "dice")),
    ]
"""
VERB = """
def add_parser(verbs):
    parser = verbs.add_parser("play", help="a game")
    parser.add_argument("--rounds", type=int, default=1)
    parser.set_defaults(handler=lambda args: print("rounds", args.rounds) or 0)

def evaluate(request):
    from asg_core.evaluation.items import EvalItem
    return [EvalItem("cards", "ace", str(i), float(request.trained)) for i in range(request.limit)]
"""


@pytest.fixture
def play(install: Install) -> None:
    install("play_plugin", PLAY, entry="play", distribution="play")
    install("play_verb", VERB, entry="broken_by_itself", distribution="verb")


@pytest.mark.usefixtures("play")
def test_a_plugins_verb_takes_its_own_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["play", "--rounds", "3"]) == 0
    assert capsys.readouterr().out == "rounds 3\n"
    assert main(["play", "--round", "x"]) == 2
    assert main(["ply"]) == 2
    assert "has no verb 'ply'" in capsys.readouterr().err


@pytest.mark.usefixtures("play")
def test_a_plugins_suite_is_scored_and_named_in_the_protocol(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["eval", "--suite", "cards", "--limit", "2", "--out", str(tmp_path / "scores"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rows"][0]["n"] == 2
    protocol = json.loads((tmp_path / "scores" / "protocol.json").read_text())["scores"]["before"]
    assert protocol["judge"] == protocol["items"]["source"] == "play_verb:evaluate"
    assert (protocol["versions"]["play"], protocol["versions"]["dice"]) == ("1.2", None)
    assert main(["eval", "--suite", "card"]) == PluginError.exit_code
    assert "Did you mean 'cards'?" in capsys.readouterr().err


@pytest.mark.usefixtures("play")
def test_plugins_and_doctor_list_extensions(capsys: pytest.CaptureFixture[str]) -> None:
    for verb in ("plugins", "doctor"):
        main([verb])
        out = capsys.readouterr().out
        assert "asg play" in out
        assert "asg eval --suite cards" in out


@pytest.mark.usefixtures("play")
@pytest.mark.parametrize("words", [["--help"], ["eval", "--help"], ["generate", "--help"]])
def test_help_imports_nothing_of_a_plugin(words: list[str]) -> None:
    code = (
        f"import sys, asg_core.cli as cli\nassert cli.main({words}) == 0\n"
        "assert not [m for m in sys.modules if m.startswith(('play_', 'asg_lab', 'asg_bagel'))]"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "asg-lab" in done.stdout


LAB = """
from asg_core.backbones.hookspecs import Extension
@hookimpl
def asg_extensions():
    REASON
"""


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, names in EXTENSIONS.items() for name in names])
def test_a_lab_that_cannot_be_used_is_named_with_its_reason_and_hurts_no_verb(
    kind: ExtensionKind,
    name: str,
    install: Install,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    own = [entry for entry in registry._entries() if entry.dist and entry.dist.name == registry.OWN_DISTRIBUTION]
    install("sick_lab", LAB.replace("REASON", "raise RuntimeError('no luck')"), entry="lab")
    sick = [entry for entry in registry._entries() if entry.value == "sick_lab"]
    monkeypatch.setattr(registry, "_entries", lambda: own + sick)
    with pytest.raises(PluginError, match="its plugin is broken") as raised:
        find_extension(kind, name)
    assert "no luck" in raised.value.why
    assert main(["plugins"]) == main(["config"]) == 0
    monkeypatch.setattr(registry, "_entries", lambda: own)
    with pytest.raises(PluginError, match="is not installed") as raised:
        find_extension(kind, name)
    assert raised.value.fix.endswith(f"pip install ./{LAB_FOLDER}")
