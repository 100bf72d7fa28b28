"""The launch lines of docs/scaling.md, with a process that is killed and one that is asked to stop."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from asg_core.runs.folder import read_json_lines
from asg_core.training.checkpoint_files import newest_good
from devkit import sizes

TORCHRUN = ["torch.distributed.run", "--nproc-per-node", "2"]
ACCELERATE = ["accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"]
SETTINGS = ["steps=500", "device=cpu", "evaluate=false", "images_per_step=2", "schedule.mode=understanding"]

pytestmark = pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds processes through /proc")


@contextmanager
def running(launcher: list[str], out: Path, images: Path) -> Iterator[subprocess.Popen[str]]:
    """The launcher with a run on two processes that has finished two steps."""
    command = [sys.executable, "-m", *launcher, "-m", "asg_core", "train", f"out={out}", f"images={images}", *SETTINGS]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    ) as started:
        try:
            while len(read_json_lines(out / "metrics.jsonl")) < 2:
                assert started.poll() is None, started.communicate()[0]
                time.sleep(0.05)
            yield started
        finally:
            if started.poll() is None:
                started.terminate()


def process_of_rank_1(out: Path) -> int:
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words, environment = ((folder / name).read_bytes().split(b"\0") for name in ("cmdline", "environ"))
        except OSError:
            continue
        if f"out={out}".encode() in words and b"RANK=1" in environment:
            return int(folder.name)
    raise AssertionError("no such process")


@pytest.mark.skipif(not sizes.FULL, reason="test_processes.py kills one without a launcher: tox -e soak")
def test_torchrun_ends_when_a_process_is_killed_and_the_last_step_is_saved(tmp_path: Path, scenes: Path) -> None:
    out = tmp_path / "run"
    with running(TORCHRUN, out, scenes) as launcher:
        os.kill(process_of_rank_1(out), signal.SIGKILL)
        printed = launcher.communicate(timeout=120)[0]
    assert launcher.returncode != 0
    assert "error: another process of this run has ended or does not answer (noticed by process 0)" in printed
    done = [record["step"] for record in read_json_lines(out / "metrics.jsonl")]
    assert done == list(range(1, len(done) + 1))
    assert newest_good(out / "checkpoints")[1]["step"] == len(done) < 25  # the interval of checkpoints


def test_a_signal_to_any_process_stops_all_after_the_same_step(tmp_path: Path, scenes: Path) -> None:
    out = tmp_path / "run"
    with running(ACCELERATE, out, scenes) as launcher:
        os.kill(process_of_rank_1(out), signal.SIGTERM)
        printed = launcher.communicate(timeout=120)[0]
    done = read_json_lines(out / "metrics.jsonl")[-1]["step"]
    assert f"saved after step {done}; go on with: asg train resume={out}" in printed
    assert newest_good(out / "checkpoints")[1]["step"] == done
    assert printed.count("step   2/500") == 1  # only the first process reports
    assert (out / "report.html").is_file()
