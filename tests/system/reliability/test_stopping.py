"""Signals and locks: a run can be stopped at any time, and only one process writes it."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from asg_core import RunConfig, Trainer
from asg_core.errors import RunFolderError
from asg_core.runs.folder import RunFolder, fill_directory
from asg_core.training.checkpoint_files import newest_good


def signalling(number: int, at_step: int, times: int) -> Callable[..., Any]:
    """A replacement for ``ask`` that sends this process a signal inside the given step."""
    asked = 0

    def ask(real: Callable[..., Any], *arguments: Any) -> Any:
        nonlocal asked
        asked += 1
        if asked == at_step:
            for _ in range(times):
                os.kill(os.getpid(), number)
        return real(*arguments)

    return ask


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_finishes_the_step_saves_and_exits(
    number: int, small: Callable[..., RunConfig], scripted: Any, tiny: Any, metrics: Any
) -> None:
    straight = Trainer(small("straight", schedule={"mode": "understanding"})).run().out
    config = small(schedule={"mode": "understanding"}, checkpoint_every_steps=10)
    summary = Trainer(config, backbone=scripted(tiny, ask=signalling(number, 3, 1))).run()
    assert (summary.interrupted, summary.steps_done) == (True, 3)
    assert newest_good(summary.out / "checkpoints")[0].name == "step-000003"
    assert metrics(Trainer.resume(summary.out).run().out) == metrics(straight)


def test_the_second_signal_exits_at_once_and_the_run_is_still_good(
    small: Callable[..., RunConfig], scripted: Any, tiny: Any, metrics: Any
) -> None:
    straight = Trainer(small("straight", schedule={"mode": "understanding"})).run().out
    config = small(schedule={"mode": "understanding"})
    with pytest.raises(KeyboardInterrupt):
        Trainer(config, backbone=scripted(tiny, ask=signalling(signal.SIGTERM, 4, 2))).run()
    assert config.out is not None
    assert len(metrics(config.out)) == 3
    assert metrics(Trainer.resume(config.out).run().out) == metrics(straight)


def test_the_lock_names_its_owner_and_dies_with_it(tmp_path: Path) -> None:
    run = tmp_path / "run"
    ready, done = os.pipe()
    owner = os.fork()
    if owner == 0:
        try:
            folder = RunFolder.create(run)
            folder.config.write_text("steps: 1\n")
            os.write(done, b"x")
            signal.pause()
        finally:
            os._exit(1)
    os.close(done)
    assert os.read(ready, 1) == b"x"
    try:
        with pytest.raises(RunFolderError, match="in use") as raised:
            RunFolder.reopen(run)
    finally:
        os.kill(owner, signal.SIGKILL)
        os.waitpid(owner, 0)
    assert f"process {owner} is writing it" in raised.value.why
    assert (run / ".lock").read_text().strip() == str(owner)
    folder = RunFolder.reopen(run)
    assert (run / ".lock").read_text().strip() == str(os.getpid())
    folder.close()


def test_what_a_killed_start_leaves_behind_can_be_started_again_and_nothing_else(tmp_path: Path) -> None:
    run = tmp_path / "run"
    RunFolder.create(run).close()
    (run / "config.yaml.tmp").write_text("steps: ")
    RunFolder.create(run).close()
    (run / "samples" / "mine.txt").write_text("irreplaceable")
    with pytest.raises(RunFolderError, match="not empty"):
        RunFolder.create(run)


def test_a_torn_line_is_cut_before_more_is_appended(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "run")
    folder.config.write_text("steps: 1\n")
    folder.append(folder.quarantine, {"file": "a"})
    folder.close()
    with folder.quarantine.open("a") as out:
        out.write('{"file": "b')
    again = RunFolder.reopen(folder.path)
    again.append(again.quarantine, {"file": "b"})
    assert again.quarantine.read_text() == '{"file": "a"}\n{"file": "b"}\n'


def test_a_directory_that_is_filled_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    def half(directory: Path) -> None:
        (directory / "1").touch()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fill_directory(tmp_path / "images", half)
    assert not (tmp_path / "images").exists()
    fill_directory(tmp_path / "images", lambda directory: (directory / "2").touch())
    assert [p.name for p in (tmp_path / "images").iterdir()] == ["2"]
    assert [p.name for p in tmp_path.iterdir()] == ["images"]


@pytest.mark.parametrize("damage", ["lock is a directory", "no permission"])
def test_a_folder_that_cannot_be_locked_is_one_error(damage: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    folder = RunFolder.create(run)
    folder.config.write_text("steps: 1\n")
    folder.close()
    (run / ".lock").unlink()
    if damage == "no permission" and os.geteuid() == 0:
        pytest.skip("root may write everywhere")
    if damage == "no permission":
        run.chmod(0o500)
    else:
        (run / ".lock").mkdir()
    with pytest.raises(RunFolderError, match="cannot be written"):
        RunFolder.reopen(run)


def test_one_command_line_starts_a_run_and_goes_on_with_it(
    scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, metrics: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    from asg_core.cli import main

    monkeypatch.setattr("asg_core.runs.report.render.draw_panels", lambda *_: [])

    def train(steps: int, *more: str, out: str = "x") -> int:
        fixed = [
            "evaluate=false",
            "images_per_step=1",
            "schedule.mode=understanding",
            "lora.rank=2",
            f"images={scenes}",
        ]
        return main(["train", *fixed, f"steps={steps}", f"out={tmp_path / out}", *more])

    assert train(2, out="straight") == 0
    assert train(1, "resume=auto") == 0
    assert train(2, "resume=auto") == 0
    assert metrics(tmp_path / "x") == metrics(tmp_path / "straight")
    assert train(2, "resume=auto", "seed=1") == 2
    assert "other settings: seed" in capsys.readouterr().err
    assert main(["train", "resume=auto"]) == 2
    for word in ("seed=1", f"out={tmp_path / 'y'}"):
        assert main(["train", f"resume={tmp_path / 'x'}", word]) == 2
        assert f"other settings: {word[: word.index('=')]}" in capsys.readouterr().err
    for word, wrong in (("steps=-3", "steps = -3 (command line)"), ("steps", "'steps' is not key=value")):
        assert main(["train", f"resume={tmp_path / 'x'}", word]) == 2
        assert wrong in capsys.readouterr().err
