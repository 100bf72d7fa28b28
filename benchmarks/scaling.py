"""What many processes would gain: step times measured in a run, dealt out to 1 .. 64 ranks in three ways.

    synchronous   every rank has the same number of chunks, and waits for the slowest at every update (what asg does)
    queue         within a step, whoever is free takes the next chunk
    stale         as synchronous, but a rank may begin the next step before the update it follows, one step at most

A chunk is one step of the measured run, so run with the images_per_step that a device takes at once:

    asg train steps=60 images_per_step=1 generate.prompts_per_step=1 evaluate=false out=runs/chunks
    python benchmarks/scaling.py runs/chunks --chunks 4

Efficiency is the time that all chunks take one after the other, divided by ranks times the simulated time. Times are
drawn with replacement from the measured ones of the same kind; the schedule of kinds is the run's own.
"""

from __future__ import annotations

import argparse
import heapq
import json
import random
import statistics
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

RANKS = (1, 2, 4, 8, 16, 32, 64)


def synchronous(steps: Sequence[Sequence[Sequence[float]]], update: float) -> float:
    """Seconds for ``steps[step][rank][chunk]`` when every rank waits for all others at every update."""
    return sum(max(sum(chunks) for chunks in ranks) + update for ranks in steps)


def queue(steps: Sequence[Sequence[Sequence[float]]], update: float) -> float:
    """Seconds when the chunks of a step lie in one queue that free ranks take from, longest unknown."""
    total = 0.0
    for ranks in steps:
        free = [0.0] * len(ranks)
        for chunk in (chunk for position in zip(*ranks, strict=True) for chunk in position):
            heapq.heapreplace(free, free[0] + chunk)
        total += max(free) + update
    return total


def stale(steps: Sequence[Sequence[Sequence[float]]], update: float) -> float:
    """Seconds when a rank begins step k as soon as its own step k - 1 is done and the update of step k - 2 is applied:
    its samples then come from weights at most one update old."""
    applied = [0.0, 0.0]  # when the updates of the last two steps are applied
    ready = [0.0] * len(steps[0])
    for ranks in steps:
        ready = [max(own, applied[0]) + sum(chunks) for own, chunks in zip(ready, ranks, strict=True)]
        applied = [applied[1], max(*ready, applied[1]) + update]
    return applied[1]


def draw(records: Sequence[tuple[str, float]], ranks: int, chunks: int, seed: int) -> list[list[list[float]]]:
    """Chunk times for every step of the run: ``[step][rank][chunk]`` seconds, from the measured ones of its kind."""
    rng = random.Random(f"{seed} {ranks}")
    by_kind: dict[str, list[float]] = defaultdict(list)
    for kind, seconds in records:
        by_kind[kind].append(seconds)
    return [[rng.choices(by_kind[kind], k=chunks) for _ in range(ranks)] for kind, _ in records]


def measured(run: Path) -> list[tuple[str, float]]:
    """Kind and seconds of every step of a run, without the first of each kind, which warms up."""
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    seen: set[str] = set()
    found = []
    for record in records:
        if record["kind"] in seen:
            found.append((record["kind"], record["seconds"]))
        seen.add(record["kind"])
    return found


def main() -> None:
    """Print the distribution of the measured times and the table of efficiencies."""
    parser = argparse.ArgumentParser(description="Efficiency of many ranks, simulated from the step times of a run.")
    parser.add_argument("run", type=Path, help="run folder of one process")
    parser.add_argument("--chunks", type=int, default=4, help="chunks of each rank in one step")
    parser.add_argument("--update-seconds", type=float, default=0.0, help="time of the gradient sum of one step")
    parser.add_argument("--repetitions", type=int, default=20)
    args = parser.parse_args()
    records = measured(args.run)
    for kind in sorted({kind for kind, _ in records}):
        times = [seconds for k, seconds in records if k == kind]
        spread = statistics.pstdev(times) / statistics.mean(times)
        print(f"{kind}: {len(times)} chunks, median {statistics.median(times):.3f} s, max {max(times):.3f} s,", end=" ")
        print(f"standard deviation {spread:.0%} of the mean")
    print(f"\n{args.chunks} chunks per rank and step, {args.update_seconds} s per update\n")
    print("| ranks | synchronous | queue | stale by one |\n|---|---|---|---|")
    for ranks in RANKS:
        cells = []
        for policy in (synchronous, queue, stale):
            efficiencies = []
            for seed in range(args.repetitions):
                steps = draw(records, ranks, args.chunks, seed)
                work = sum(chunk for step in steps for rank in step for chunk in rank)
                efficiencies.append(work / ranks / policy(steps, args.update_seconds))
            cells.append(f"{statistics.mean(efficiencies):.0%}")
        print(f"| {ranks} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
