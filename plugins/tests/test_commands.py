"""Commands that READMEs and examples print: all fit their usage, and those that need no download are run."""

from __future__ import annotations

import json
import os
import re
import resource
import shlex
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

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
def clone(tmp_path: Path) -> Path:
    """A folder in which the repository's paths are right, and what a command writes is not in the repository."""
    for name in ("examples", "plugins"):
        (tmp_path / name).symlink_to(ROOT / name, target_is_directory=True)
    return tmp_path


def run(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """The command in a shell, on one core and without any network; it may take a minute of that core."""
    environment = {key: value for key, value in os.environ.items() if key != "HF_HUB_OFFLINE"}
    nowhere = dict.fromkeys(["http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"], "http://127.0.0.1:9")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment |= {**nowhere, "PATH": path, "OMP_NUM_THREADS": "1"}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, shell=True, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 60
    return done


def summary(done: subprocess.CompletedProcess[str], folder: Path) -> dict[str, object]:
    """summary.json of the run whose report the command names."""
    found = re.fullmatch(r"\d steps, report: (runs/.*)/report\.html\n", done.stdout)
    assert found is not None, done.stdout
    read: dict[str, object] = json.loads((folder / found[1] / "summary.json").read_text(encoding="utf-8"))
    return read


@pytest.mark.parametrize("name", PLUGINS)
def test_the_tiny_example_runs_from_the_repository_alone_and_says_that_nothing_was_learned(
    name: str, clone: Path
) -> None:
    command = f"asg train examples/{name}/tiny.yaml"
    assert command in commands(ROOT / f"plugins/asg_{name}/README.md")
    assert command in commands(ROOT / f"examples/{name}/tiny.yaml")
    done = run(command, clone)
    end = summary(done, clone)
    assert end["steps_done"] == load_run_config(clone / f"examples/{name}/tiny.yaml", []).steps
    assert end["never_updated"] == ROLES
    *_, last = done.stderr.splitlines()
    assert re.fullmatch(
        r"never updated: proposer, solver, generator; (\d+) of \1 completions were no question; .*", last
    )
    assert {path.name for path in clone.iterdir()} == {"examples", "plugins", "runs"}


def test_the_taught_checkpoint_moves_all_three_roles(clone: Path) -> None:
    make, train = (line for line in commands(ROOT / "examples/bagel/tiny.yaml") if "tiny-bagel" in line)
    run(make, clone)
    done = run(train, clone)
    assert summary(done, clone)["never_updated"] == []
    assert "never updated" not in done.stderr


def test_the_drawing_example_runs_on_the_recorded_checkpoint(clone: Path) -> None:
    tiny, _ = commands(ROOT / "examples/vargpt/draw_and_score.py")
    lines = run(tiny, clone).stdout.splitlines()
    assert [line.partition("  log-prob -")[0] for line in lines] == [f"{number}.png" for number in range(4)]
    assert all((clone / f"{number}.png").is_file() for number in range(4))
