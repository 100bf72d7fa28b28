"""A crew of forked processes that run scenarios together, over gloo on the CPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from asg_core.training.distributed import Processes

Launch = Callable[..., list[dict[str, Any]]]


class Threads(Processes):
    """Processes that are threads of this one: what each passes to ``gather`` lies in a common list."""

    def __init__(self, rank: int, count: int, board: list[Any], barrier: threading.Barrier) -> None:
        super().__init__()
        self.rank, self.count, self._board, self._barrier = rank, count, board, barrier

    def gather(self, value: Any) -> list[Any]:
        self._board[self.rank] = value
        self._barrier.wait(timeout=20)
        found = json.loads(json.dumps(self._board))
        self._barrier.wait(timeout=20)
        return found


@pytest.fixture(scope="session")
def launch(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launch]:
    """``launch(2, "train", run={...})``: outcomes by rank of one scenario of ``worker.py`` in two processes."""
    log = tmp_path_factory.mktemp("crew") / "stderr.txt"
    with (
        log.open("w") as errors,
        subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("worker.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        ) as crew,
    ):
        assert crew.stdin is not None
        assert crew.stdout is not None

        def run(processes: int, scenario: str, **arguments: Any) -> list[dict[str, Any]]:
            job = {"processes": processes, "scenario": scenario, "arguments": arguments}
            assert crew.poll() is None, log.read_text()
            crew.stdin.write(json.dumps(job, default=str) + "\n")
            crew.stdin.flush()
            answer = crew.stdout.readline()
            assert answer, log.read_text()
            return json.loads(answer)

        yield run
        crew.stdin.close()
