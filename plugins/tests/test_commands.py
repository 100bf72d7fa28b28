"""Commands that READMEs and examples print: all fit their usage, and those that need no download are run."""

from __future__ import annotations

import json
import re
import shlex
import socket
import sys
import time
from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from runpy import run_path
from typing import NoReturn

import pytest

from asg_core.cli import main
from asg_core.cli.common import load_config
from asg_core.cli.main import VERBS
from asg_core.runs.configuration import load_run_config

ROOT = Path(__file__).resolve().parents[2]
PLUGINS = ("bagel", "blip3o", "vargpt")
YAMLS = [file for name in PLUGINS for file in sorted((ROOT / "examples" / name).glob("*.yaml"))]
PAGES = [ROOT / "README.md", *(ROOT / f"plugins/asg_{name}/README.md" for name in PLUGINS), *YAMLS]
PAGES += [file for name in PLUGINS for file in sorted((ROOT / "examples" / name).glob("*.py"))]
ROLES = ["proposer", "solver", "generator"]


def commands(page: Path) -> list[str]:
    """The commands of a page in order, one line each, without prompts and remarks."""
    lines = re.findall(r"^(?:#? +)?((?:asg|pip|python) .*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return [re.sub(r" +#.*", "", part) for line in lines for part in line.split(" && ")]


@pytest.fixture
def understood(monkeypatch: pytest.MonkeyPatch) -> list[Namespace]:
    """What verbs were given; they do nothing with it."""
    seen: list[Namespace] = []
    for verb in VERBS:
        monkeypatch.setattr(f"asg_core.cli.{verb}.run", lambda args: seen.append(args) or 0)
    monkeypatch.chdir(ROOT)
    return seen


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_commands_of_a_page_fit_their_usage(page: Path, understood: list[Namespace]) -> None:
    assert commands(page)
    for command in commands(page):
        program, *words = shlex.split(command)
        assert [w for w in words if re.match(r"\.\/|(plugins|examples|benchmarks)/", w) and not Path(w).exists()] == []
        if program == "asg":
            assert main(words) == 0, command
            settings = [word for word in getattr(understood[-1], "overrides", []) if not word.startswith("resume=")]
            load_config(settings)


@pytest.mark.parametrize("file", YAMLS, ids=lambda file: str(file.relative_to(ROOT)))
def test_an_example_opens_with_how_to_install_and_run_it(file: Path) -> None:
    install, train, *_ = commands(file)
    name = file.parent.name
    assert install == f"pip install ./plugins/asg_{name}"
    assert train.startswith(f"asg train {file.relative_to(ROOT).as_posix()}")
    assert load_run_config(file, []).backbone == name


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, in which the repository's paths are right and what a command writes is not in it.

    There are no plots, at which nobody looks, and no network.
    """
    for name in ("examples", "plugins"):
        (tmp_path / name).symlink_to(ROOT / name, target_is_directory=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("asg_core.runs.report.render.draw_panels", lambda *_: [])

    def refuse(self: socket.socket, address: object) -> NoReturn:
        pytest.fail(f"connects to {address}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    return tmp_path


@dataclass
class Done:
    """What a command printed."""

    stdout: str
    stderr: str


@pytest.fixture
def run(clone: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Done]:
    """Runs a command that must succeed, in this process: it may take a minute of one core."""

    def run(command: str) -> Done:
        program, *words = shlex.split(command)
        began = time.process_time()
        if program == "asg":
            assert main(words) == 0
        else:
            assert program == "python"
            monkeypatch.setattr(sys, "argv", words)
            run_path(words[0], run_name="__main__")
        assert time.process_time() - began < 60
        return Done(*capfd.readouterr())

    return run


def summary(done: Done) -> dict[str, object]:
    """summary.json of the run whose report the command names."""
    found = re.fullmatch(r"\d steps, report: (runs/.*)/report\.html\n", done.stdout)
    assert found is not None, done.stdout
    read: dict[str, object] = json.loads(Path(found[1], "summary.json").read_text(encoding="utf-8"))
    return read


@pytest.mark.parametrize("name", PLUGINS)
def test_the_tiny_example_runs_from_the_repository_alone_and_says_that_nothing_was_learned(
    name: str, clone: Path, run: Callable[[str], Done]
) -> None:
    command = f"asg train examples/{name}/tiny.yaml"
    assert command in commands(ROOT / f"plugins/asg_{name}/README.md")
    assert command in commands(ROOT / f"examples/{name}/tiny.yaml")
    done = run(command)
    end = summary(done)
    assert end["steps_done"] == load_run_config(Path(f"examples/{name}/tiny.yaml"), []).steps
    assert end["never_updated"] == ROLES
    *_, last = done.stderr.splitlines()
    assert re.fullmatch(
        r"never updated: proposer, solver, generator; (\d+) of \1 completions were no question; .*", last
    )
    assert {path.name for path in clone.iterdir()} == {"examples", "plugins", "runs"}


def test_the_taught_checkpoint_moves_all_three_roles(run: Callable[[str], Done]) -> None:
    make, train = (line for line in commands(ROOT / "examples/bagel/tiny.yaml") if "tiny-bagel" in line)
    run(make)
    done = run(train)
    assert summary(done)["never_updated"] == []
    assert "never updated" not in done.stderr


def test_the_drawing_example_runs_on_the_recorded_checkpoint(run: Callable[[str], Done]) -> None:
    tiny, _ = commands(ROOT / "examples/vargpt/draw_and_score.py")
    lines = run(tiny).stdout.splitlines()
    assert [line.partition("  log-prob -")[0] for line in lines] == [f"{number}.png" for number in range(4)]
    assert all(Path(f"{number}.png").is_file() for number in range(4))
