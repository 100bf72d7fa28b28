"""The top of the command line: one clear message, the documented exit code, clean stdout, quick help."""

from __future__ import annotations

import os
import re
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import asg_core
from asg_core import errors
from asg_core.backbones.known_plugins import EXTENSIONS
from asg_core.cli import main
from asg_core.cli.main import EPILOG, build_parser

DOCS = Path(__file__).resolve().parents[3] / "docs" / "cli.md"
ASG = [sys.executable, "-m", "asg_core"]


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["train", "steps=-1"], 2, "steps = -1"),
        (["train", "nowhere.yaml"], 2, "nowhere.yaml"),
        (["train", "steps"], 2, "steps"),
        (["config", "setps=1"], 2, "Did you mean 'steps'?"),
        (["trian"], 2, "Did you mean 'train'?"),
        (["train", "--steps", "3"], 2, "'--steps'"),
        (["ask"], 2, "IMAGE"),
        (["ask", "x.png", "--n", "0"], 2, "not >= 1"),
        (["generate", "  "], 2, "prompt is empty"),
        (["solve", "x.png", "Is it red?", "--json", "stray"], 2, "'stray'"),
        (["plugins", "a=b"], 2, "a=b"),
        (["ask", "nowhere.png"], 3, "nowhere.png"),
        (["train", "images=nowhere", "out=never"], 3, "images=nowhere"),
        (["train", "backbone=tinny"], 4, "Did you mean 'tiny'?"),
        (["eval", "--weights", "nowhere"], 5, "weights=nowhere"),
        (["generate", "a circle", "--run", "nowhere"], 6, "nowhere is not a run"),
        (["report", "nowhere"], 6, "nowhere is not a run"),
        (["train", "resume=nowhere"], 6, "nowhere is not a run"),
        (["train", "resume=nowhere", "seed=1"], 6, "nowhere is not a run"),
    ],
)
def test_an_error_is_one_message_with_its_exit_code(
    words: list[str],
    code: int,
    message: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(words) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert err.count("error: ") == err.count("\n  why: ") == err.count("\n  fix: ") == 1
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


def test_every_error_class_has_a_documented_exit_code() -> None:
    in_help = set(map(int, re.findall(r"^ +(\d+) ", EPILOG, re.MULTILINE)))
    in_docs = set(map(int, re.findall(r"^\| (\d+) \|", DOCS.read_text(encoding="utf-8"), re.MULTILINE)))
    classes = [c for c in vars(errors).values() if isinstance(c, type) and issubclass(c, errors.AsgError)]
    assert in_help == in_docs == {c.exit_code for c in classes} | {0, 130}


def test_verbs_and_environment_variables_are_documented() -> None:
    text = DOCS.read_text(encoding="utf-8")
    assert [verb for verb in build_parser().get_default("verbs") if f"`asg {verb} " not in text] == []
    assert [name for name in set(re.findall(r"ASG_\w+", EPILOG)) if f"`{name}" not in text] == []


def fail(error: BaseException) -> object:
    def run(args: object) -> int:
        raise error

    return run


def test_any_other_error_is_one_line_and_a_traceback_in_a_file(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr("asg_core.cli.config.run", fail(ZeroDivisionError("division\nby zero")))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.delenv("ASG_DEBUG", raising=False)
    assert main(["config"]) == 1
    err = capsys.readouterr().err
    assert "error: ZeroDivisionError: division by zero\n" in err
    assert "Traceback" not in err
    (file,) = tmp_path.iterdir()
    assert str(file) in err
    assert "Traceback" in file.read_text()
    monkeypatch.setenv("ASG_DEBUG", "1")
    assert main(["config"]) == 1
    assert "Traceback" in capsys.readouterr().err
    assert len(list(tmp_path.iterdir())) == 1


def test_debugging_shows_where_a_typed_error_came_from(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ASG_DEBUG", "1")
    assert main(["config", "steps=-1"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_interruption_and_stopped_training_have_their_codes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("asg_core.cli.config.run", fail(KeyboardInterrupt()))
    assert main(["config"]) == 130
    monkeypatch.setattr("asg_core.cli.config.run", fail(errors.TrainingStopped("a", "b", "c")))
    assert main(["config"]) == 7
    assert "Traceback" not in capsys.readouterr().err


def test_a_closed_pipe_is_no_error() -> None:
    for verb in ("config", "plugins"):
        reader, writer = os.pipe()
        os.close(reader)
        done = subprocess.run([*ASG, verb], stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
        os.close(writer)
        assert (done.returncode, done.stderr) == (0, "")


def test_version_help_and_module_agree(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"asg {asg_core.__version__}\n"
    assert main([]) == main(["--help"]) == 0
    out = capsys.readouterr().out
    assert "exit codes:" in out
    done = subprocess.run([*ASG, "--version"], capture_output=True, text=True, check=False)
    assert done.stdout == f"asg {asg_core.__version__}\n"
    for verb in set(build_parser().get_default("verbs")) - set(EXTENSIONS["verb"]):
        assert main([verb, "--help"]) == 0


def test_help_comes_in_half_a_second() -> None:
    def once() -> float:
        """Processor seconds, which other work on the machine does not change."""
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([*ASG, "--help"], capture_output=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    assert min(once() for _ in range(3)) < 0.5


def test_settings_may_follow_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", "--json", "seed=1", "--limit", "2", "steps=-1"]) == 2
    assert "steps = -1 (command line)" in capsys.readouterr().err


def test_ctrl_c_leaves_with_130() -> None:
    # a background job starts with SIGINT ignored, which its children inherit
    code = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    code += "import sys, time, asg_core.cli as c, asg_core.cli.config as v\n"
    code += "v.run = lambda args: (print('go', flush=True), time.sleep(60))\nsys.exit(c.main(['config']))"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "go\n"
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert err == "interrupted\n"
