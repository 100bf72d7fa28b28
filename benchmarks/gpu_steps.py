"""Whole training steps of one model: batched, at several images, captured, and call by call."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from asg_core.planning.duration import generation_phases, understanding_phases
from gpu_bench import Bench
from gpu_models import pictures
from gpu_rows import GIB, Row, against, timed, wait
from one_by_one import OneByOne, separate
from scripted_step import Kind, Lengths, planned, require_updates, scripted_step

REPEAT_BELOW = 5.0
"""Seconds; what took less is measured again, warm."""

LONG_BARS = {"eager": 12.0, "captured": 5.5, "an image of 8": 3.5}
"""Seconds of BLIP3o's understanding step with 1,024 image tokens and 250 decoding passes."""

SEQUENTIAL_BARS = {1: 4.0, 8: 18.0}
"""Least times that a sequential understanding step takes longer, by images."""


@dataclass(frozen=True)
class Step:
    """A step to measure: its section, kind, number of images, workload, and how decoding runs."""

    section: str
    kind: Kind
    count: int
    lengths: Lengths
    how: str = "eager"


def step(bench: Bench, what: Step) -> Iterator[Row]:
    """A whole step with its updates, the second of two if the first was quick, and what it was planned to need."""
    config = bench.config(what.kind, what.count, what.lengths)
    needed = planned(bench.built.shape, config, what.kind, what.count, what.lengths.side).peak
    if bench.memory is not None and needed > bench.memory:
        why = f"does not fit: planned {needed / GIB:.0f} GiB, there are {bench.memory / GIB:.0f}"
        yield Row(what.section, status="not run", note=why)
        return
    parts: dict[str, float] = {}

    @contextmanager
    def watch(part: str) -> Iterator[None]:
        wait(bench.device)
        start = time.perf_counter()
        yield
        wait(bench.device)
        parts[part] = time.perf_counter() - start

    def run() -> None:
        images = pictures(what.count, what.lengths.side)
        require_updates(
            scripted_step(bench.backbone, what.kind, images, config, bench.optimizer, floors=bench.floors, watch=watch)
        )

    def once() -> float:
        parts.clear()
        return timed(bench.device, run)

    value = once()
    value = once() if value < REPEAT_BELOW else value
    bench.took[what.section] = value
    size = (what.lengths.side, what.lengths.side)
    phases = (understanding_phases if what.kind == "understanding" else generation_phases)(
        bench.built.shape, config, size, what.count
    )
    micro = config.optimizer.micro_batch or "all"
    tokens = bench.built.shape.see(*size).tokens
    note = f"{what.how}; {tokens} image tokens, {what.lengths.ask}+{what.lengths.solve} new; {micro} groups a backward"
    row = Row(
        what.section,
        f"{what.count} images",
        value,
        "s",
        bound=sum(phase.seconds(bench.rates, launches=False) for phase in phases) if bench.rates else None,
        planned_gib=needed / GIB,
        note=note,
    )
    barred = bench.name == "blip3o" and what.kind == "understanding" and what.lengths == bench.long and not bench.tiny
    yield against(row, LONG_BARS[what.how] if barred and what.count == 1 else None)
    for part, spent in parts.items():
        yield Row(what.section, part, spent, "s")
    if what.count > 1:
        row = Row(what.section, "per image", value / what.count, "s")
        yield against(row, LONG_BARS["an image of 8"] if barred else None)


def sequential(bench: Bench, kind: Kind) -> Iterator[Row]:
    """The same step at one image, call by call, and how much longer it takes than the batched ones."""
    section = f"sequential {kind} step"
    config = bench.config(kind, 1, bench.short)
    config = config.model_copy(update={"optimizer": config.optimizer.model_copy(update={"micro_batch": 1})})
    model = OneByOne(bench.backbone)

    def run() -> None:
        images = pictures(1, bench.short.side)
        require_updates(
            scripted_step(model, kind, images, config, bench.optimizer, floors=bench.floors, regroup=separate)
        )

    value = timed(bench.device, run)
    yield Row(section, "1 images", value, "s", note="one request a call, nothing kept, one backward a sample")
    for count, other in ((1, f"{kind} step"), (bench.many, f"{kind} step x{bench.many}")):
        if other in bench.took:
            row = Row(section, f"sequential / batched, {count} images", count * value / bench.took[other], "x")
            barred = kind == "understanding" and not bench.tiny
            yield against(row, SEQUENTIAL_BARS.get(count) if barred else None)
