"""Eager against compiled decoding on the CPU; RESULTS.md has the table.

    python benchmarks/compiled.py              prints the table
    python benchmarks/compiled.py --write      and puts it into RESULTS.md

Random-weight Qwen2.5-VLs complete a prompt, 64 tokens a row, eagerly and by compiled passes in turn, one thread, one
process. Both are asserted to give the same tokens. A ratio is the median over pairs of CPU times, the first call, which
compiles, left out and shown apart. What this says about CUDA is nothing: there, passes are replayed graphs.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch

from asg_core.backbones.interface import TextRequest, TextSample, TextSampling
from asg_core.models.decoding import CompiledDecode
from asg_core.testing.qwen import QwenBackbone, random_qwen
from results import machine, write_section

TOKENS = 64
SIZES: dict[str, dict[str, Any]] = {
    "8 layers, width 64": {"layers": 8, "width": 64, "mlp": 128, "heads": 4},
    "8 layers, width 512": {"layers": 8, "width": 512, "mlp": 1024, "heads": 8},
}
BATCHES = (1, 8, 20, 32)
ENDING = frozenset(range(0, 256, 20))
"""One token in twenty ends a row, so that the batch thins out."""


def timed(run: Callable[[], list[TextSample]]) -> tuple[float, list[TextSample]]:
    """Seconds of CPU time, and the samples."""
    started = time.process_time()
    samples = run()
    return time.process_time() - started, samples


def row(name: str, backbone: QwenBackbone, batch: int, repetitions: int) -> str:
    """One line of the table."""
    compiled = CompiledDecode(backbone.text)
    requests = [TextRequest("What is to be seen?", None, seed) for seed in range(batch)]

    def call(way: CompiledDecode | None) -> tuple[float, list[TextSample]]:
        backbone.compiled = way
        return timed(lambda: backbone.solve(requests, TextSampling(TOKENS)))

    started = time.perf_counter()
    call(compiled)
    first = time.perf_counter() - started
    call(None)
    pairs = []
    for i in range(repetitions):
        seconds, samples = {}, {}
        for way in (None, compiled) if i % 2 else (compiled, None):
            seconds[way is None], samples[way is None] = call(way)
        if [s.token_ids for s in samples[True]] != [s.token_ids for s in samples[False]]:
            raise AssertionError(f"{name}: other tokens")
        pairs.append((seconds[True], seconds[False]))
    passes = max(len(sample.token_ids) for sample in samples[True])
    ratios = sorted(eager / ours for eager, ours in pairs)
    eager, ours = (1000 * statistics.median(column) / passes for column in zip(*pairs, strict=True))
    spread = f"{statistics.median(ratios):.2f}x ({ratios[0]:.2f} to {ratios[-1]:.2f})"
    return f"| {name} | {spread} | {eager:.2f} / {ours:.2f} ms | {first:.0f} s |"


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=7, help="pairs per ratio, at least 5 for a table to keep")
    parser.add_argument("--write", action="store_true", help="put the table into RESULTS.md")
    args = parser.parse_args()
    torch.set_num_threads(1)
    load = os.getloadavg()[0]
    lines = ["| what | eager / compiled (spread) | a token of every row | first call |", "|---|---|---|---|"]
    for size, shape in SIZES.items():
        backbone = QwenBackbone(random_qwen(**shape), scale=0.02)
        for ending in (frozenset(), ENDING):
            backbone.text.stop_token_ids = ending
            for batch in BATCHES if not ending else BATCHES[-1:]:
                name = f"{size}, {batch} rows{' that end one by one' if ending else ''}"
                lines.append(row(name, backbone, batch, args.repetitions))
                print(lines[-1], flush=True)
    if args.write:
        note = f"{machine()}. Load average {load:.1f} at the start, {os.getloadavg()[0]:.1f} at the end."
        table = "\n".join(lines)
        write_section("Compiled decoding on a CPU", f"`{' '.join(['python', *sys.argv])}`, {note}\n\n{table}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
