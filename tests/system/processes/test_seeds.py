"""A seed belongs to the place of an image, question or drawing in the step, whoever has it."""

from __future__ import annotations

import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from asg_core import RunConfig, load_backbone
from asg_core.config.seeding import derive_seed
from asg_core.data.image_pool import PoolImage
from asg_core.method.context import StepContext
from asg_core.method.generation import generation_step
from asg_core.method.losses import EmaBaseline
from asg_core.method.token_entropy import RollingPercentile
from asg_core.method.understanding import understanding_step
from asg_core.training.distributed import Processes, ProcessGather

from .conftest import Threads

COUNT = 3


@pytest.mark.parametrize(
    ("kind", "purposes"),
    [("understanding", {"ask", "solve", "vote", "ste"}), ("generation", {"spec", "draw", "judge"})],
)
def test_seeds_of_all_shares_are_those_of_one_process(
    kind: str, purposes: set[str], images: list[PoolImage], config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: Counter[tuple[Any, ...]] = Counter()

    def recorded(*path: int | str) -> int:
        if path[2] in purposes:
            used[path] += 1
        return derive_seed(*path)

    monkeypatch.setattr("asg_core.method.context.derive_seed", recorded)

    def step(share: list[PoolImage], processes: Processes, first: int) -> None:
        backbone = load_backbone("tiny", device="cpu", dtype="float32")
        if kind == "generation":
            generation_step(backbone, share, StepContext(config, 4, ProcessGather(processes), first))
        else:
            ctx = StepContext(config, 1, ProcessGather(processes), first)
            understanding_step(backbone, share, ctx, RollingPercentile(), EmaBaseline())

    step(images, Processes(), 0)
    alone = used.copy()
    assert {path[2] for path in alone} == purposes
    used.clear()
    board, barrier = [None] * COUNT, threading.Barrier(COUNT)

    def take_part(rank: int) -> None:
        processes = Threads(rank, COUNT, board, barrier)
        mine = processes.share(len(images))
        step([images[i] for i in mine], processes, mine.start)

    with ThreadPoolExecutor(COUNT) as threads:
        list(threads.map(take_part, range(COUNT)))
    assert used == alone
