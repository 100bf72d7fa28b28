"""Run what a study lacks: one ``asg train`` process a run, several at a time. Finished runs are never run again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from asg_core.config.schema import RunConfig
from asg_core.errors import AsgError, RunFolderError
from asg_core.runs.configuration import load_run_config, write_run_config
from asg_lab.study.suite import Suite


class StudyError(AsgError):
    """Runs of a study failed."""


def run_folder_of(out: Path, arm: str, seed: int) -> Path:
    """Where the run of one arm and seed is, below the study's folder."""
    return out / "runs" / f"{arm.replace(' ', '-')}-{seed}"


def has_runs(out: Path) -> bool:
    """Whether the study's folder holds a finished run."""
    return any(is_finished(run) for run in (out / "runs").glob("*"))


def is_finished(run: Path) -> bool:
    """Whether a run reached its end and was evaluated before and after."""
    file = run / "summary.json"
    if not file.is_file():
        return False
    summary = json.loads(file.read_text(encoding="utf-8"))
    return not summary["interrupted"] and summary["evaluation"] is not None


def run_study(suite: Suite, out: Path, jobs: int, say: Callable[[str], None]) -> None:
    """Run every arm with every seed unless it is done; an interrupted run goes on from its last checkpoint.

    Args:
        suite: what to run.
        out: the study's folder; runs, their configurations and their logs go below it.
        jobs: processes at a time, >= 1; the cores are divided among them unless OMP_NUM_THREADS says otherwise.
        say: called with one line whenever a run ends.

    Raises:
        RunFolderError: ``out`` holds a run of the same arm and seed with other settings.
        StudyError: runs failed; the others were finished first.
    """
    wanted = [(arm, seed) for seed in suite.seeds for arm in suite.arms]
    todo = []
    for arm, seed in wanted:
        run = run_folder_of(out, arm, seed)
        _check_same(run, suite.run_config(arm, seed))
        if not is_finished(run):
            todo.append((arm, seed))
    say(f"{suite.name}: {len(wanted)} runs, {len(wanted) - len(todo)} of them done before")
    (out / "logs").mkdir(parents=True, exist_ok=True)
    environment = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // jobs)), **os.environ}
    failed: list[str] = []

    def run_one(job: tuple[str, int]) -> None:
        arm, seed = job
        run = run_folder_of(out, arm, seed)
        log = out / "logs" / f"{run.name}.txt"
        with log.open("a", encoding="utf-8") as output:
            done = subprocess.run(
                _command(suite.run_config(arm, seed), run, out),
                stdout=output,
                stderr=output,
                env=environment,
                check=False,
            )
        if done.returncode or not is_finished(run):
            failed.append(f"{arm}, seed {seed} (exit code {done.returncode}, see {log})")
        say(f"{arm}, seed {seed}: {'failed' if done.returncode else 'done'}")

    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(run_one, todo))
    if failed:
        raise StudyError(
            f"{len(failed)} of {len(todo)} runs failed", "; ".join(failed), "mend the cause and repeat the command"
        )


def _command(config: RunConfig, run: Path, out: Path) -> list[str]:
    if any((run / "checkpoints").glob("step-*")):
        return [sys.executable, "-m", "asg_core", "train", f"resume={run}"]
    file = out / "configs" / f"{run.name}.yaml"
    file.parent.mkdir(parents=True, exist_ok=True)
    write_run_config(config, file)
    return [sys.executable, "-m", "asg_core", "train", str(file), f"out={run}"]


def _check_same(run: Path, wanted: RunConfig) -> None:
    stored = run / "config.yaml"
    if not stored.is_file():
        return
    there = load_run_config(stored).model_dump(exclude={"out"})
    differing = [key for key, value in wanted.model_dump(exclude={"out"}).items() if there[key] != value]
    if differing:
        raise RunFolderError(
            f"{run} holds a run with other settings",
            f"{', '.join(differing)} differ from the study's",
            "give another --out DIR, or delete that run",
        )
