"""Full-size models with random weights on one device: is bfloat16 right, and how fast is everything?

    python benchmarks/gpu.py [bagel|blip3o|vargpt|all] [--minutes 8] [--json FILE]
    python benchmarks/gpu.py all --device cpu --tiny        the same code at the fixtures' sizes, a minute

Needs no weights: the architecture is that of the release, its weights are drawn on the device. Correctness comes
first; then prefill, decoding, images, one training step of each kind at 1 and 8 images, and the same step taken call by
call. Bounds are counted from parameters and tokens at 80 % of the device's peak FLOP/s and 90 % of its bandwidth.
Random weights write nothing that parses, so the texts of a step are scripted (its tokens are not; see scripted.py).

Exit code 1 if a section failed. What the time did not suffice for is listed as "not run".
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

# fragments of several sizes of batches would otherwise take gigabytes; read when CUDA starts
os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
sys.path.insert(0, str(Path(__file__).resolve().parent))

import torch
from gpu_models import NAMES, build, installed
from gpu_precision import precision
from gpu_report import (
    Deadline,
    Row,
    Section,
    accelerator_of,
    device_name,
    header,
    markdown,
    release_memory,
    run_sections,
    write_json,
)
from gpu_sections import Bench


def measure(
    name: str, device: torch.device, *, tiny: bool, dtype: str, deadline: Deadline, rates_of: str | None
) -> list[Row]:
    """All rows of one backbone; the model is gone when this returns."""
    rows = run_sections([Section("precision", lambda: precision(name, tiny, str(device), dtype))], deadline, device)
    release_memory(device)
    made: list[Bench] = []

    def make() -> list[Row]:
        start = time.perf_counter()
        built = build(name, "tiny" if tiny else "full", str(device), dtype, checkpointing=True)
        made.append(Bench(name, built, device, accelerator_of(device, rates_of), tiny))
        count = built.shape.parameters
        note = f"{count:,} parameters, random weights, {built.shape.weight_bytes / 2**30:.1f} GiB counted"
        return [Row("build", "model", time.perf_counter() - start, "s", note=note)]

    rows += run_sections([Section("build", make)], deadline, device)
    if made:
        rows += run_sections(made[0].sections(), deadline, device)
    made.clear()
    release_memory(device)
    return rows


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("backbone", nargs="?", default="all", choices=(*NAMES, "all"))
    parser.add_argument("--minutes", type=float, default=8.0, help="time for everything (8)")
    parser.add_argument("--device", default="cuda", help="cuda (default), cuda:1, cpu")
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float16", "float32"))
    parser.add_argument("--tiny", action="store_true", help="the recorded fixtures' sizes, to test the benchmark")
    parser.add_argument("--device-name", help="rates to compare with (default: those of the device, if known)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write everything there")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Run; prints a markdown table. Returns the exit code."""
    args = parse(argv)
    start = time.perf_counter()
    device = torch.device(args.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print("error: there is no CUDA device here; --device cpu --tiny tests the benchmark itself", file=sys.stderr)
        return 2
    if device.type == "cpu" and not args.tiny:
        print("error: full-size models need a CUDA device; add --tiny", file=sys.stderr)
        return 2
    print(f"{device_name(device)}, torch {torch.__version__}, {args.dtype}, {args.minutes:g} minutes", flush=True)
    whole = Deadline(60 * args.minutes)
    scale = "tiny" if args.tiny else "full"
    names = NAMES if args.backbone == "all" else (args.backbone,)
    results: dict[str, list[Row]] = {}
    for index, name in enumerate(names):
        print(f"{name}:", flush=True)
        if not installed(name):
            results[name] = [Row("build", status="not run", note=f"asg-{name} is not installed")]
        else:
            share = Deadline(whole.left / (len(names) - index))
            results[name] = measure(
                name, device, tiny=args.tiny, dtype=args.dtype, deadline=share, rates_of=args.device_name
            )
        if args.json is not None:  # after each, so that an interrupted run leaves what it has
            write_json(args.json, header(device, scale, args.dtype, time.perf_counter() - start), results)
    head = header(device, scale, args.dtype, time.perf_counter() - start)
    print("\n" + ", ".join(f"{key}: {value}" for key, value in head.items()) + "\n")
    print(markdown(results))
    return int(any(row.status == "failed" for rows in results.values() for row in rows))


if __name__ == "__main__":
    sys.exit(main())
