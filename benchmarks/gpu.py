"""Full-size models with random weights on one device: is bfloat16 right, and how fast is everything?

    python benchmarks/gpu.py [bagel|blip3o|vargpt|all] [--minutes 8] [--only SECTION,...] [--json FILE]
    python benchmarks/gpu.py all --device cpu --tiny        the same code at the fixtures' sizes, a few minutes

Needs no weights: the architecture is that of the release, its weights are drawn on the device. Correctness comes
first, then what is most worth knowing, one round over all backbones after the other: parts and one step of each kind;
captured decoding and the long workload; eight images; profile and sequential steps; torch.compile. Bounds are counted
from parameters and tokens at 80 % of the device's peak FLOP/s and 90 % of its bandwidth. Random weights write nothing
that parses, so the texts of a step are scripted (its tokens are not; see scripted.py).

Exit code 1 if a section failed; a bar that was missed is no failure. What the time did not suffice for is "not run".
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

from gpu_models import NAMES, installed
from gpu_report import device_name, header, markdown, write_json
from gpu_rounds import Shelf, rounds
from gpu_rows import Deadline, Row


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("backbone", nargs="?", default="all", choices=(*NAMES, "all"))
    parser.add_argument("--minutes", type=float, default=8.0, help="time for everything (8)")
    parser.add_argument("--only", default="", metavar="SECTION,...", help="these sections; an unknown one lists all")
    parser.add_argument("--device", default="cuda", help="cuda (default), cuda:1, cpu")
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float16", "float32"))
    parser.add_argument("--tiny", action="store_true", help="the recorded fixtures' sizes, to test the benchmark")
    parser.add_argument("--device-name", help="rates to compare with (default: those of the device, if known)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write everything there, row by row")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Run; prints a markdown table. Returns the exit code."""
    args = parse(argv)
    start = time.perf_counter()
    device = torch.device(args.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        return _refuse("there is no CUDA device here; --device cpu --tiny tests the benchmark itself")
    if device.type == "cpu" and not args.tiny:
        return _refuse("full-size models need a CUDA device; add --tiny")
    order = rounds(2 if args.tiny else 8)
    known = [name for names in order for name in names]
    wanted = [name.strip() for name in args.only.split(",") if name.strip()]
    if unknown := [name for name in wanted if name not in known]:
        return _refuse(f"--only: there is no section {unknown[0]!r}; sections are {', '.join(known)}")
    print(f"{device_name(device)}, torch {torch.__version__}, {args.dtype}, {args.minutes:g} minutes", flush=True)
    scale = "tiny" if args.tiny else "full"
    names = NAMES if args.backbone == "all" else (args.backbone,)
    results: dict[str, list[Row]] = {name: [] for name in names}

    def head() -> dict[str, object]:
        return header(device, scale, args.dtype, time.perf_counter() - start)

    def save(name: str, row: Row) -> None:
        results[name].append(row)
        if args.json is not None:
            write_json(args.json, head(), results)

    if warning := head().get("warning"):
        print(f"warning: {warning}", flush=True)
    for name in names:
        if not installed(name):
            save(name, Row("build", status="not run", note=f"asg-{name} is not installed"))
    shelf = Shelf(device, args.tiny, args.dtype, args.device_name, Deadline(60 * args.minutes), save)
    for sections in order:
        chosen = tuple(name for name in sections if not wanted or name in wanted)
        for name in filter(installed, names if chosen else ()):
            print(f"{name}:", flush=True)
            shelf.measure(name, chosen)
    print("\n" + ", ".join(f"{key}: {value}" for key, value in head().items()) + "\n")
    print(markdown(results))
    return int(any(row.status == "failed" for rows in results.values() for row in rows))


def _refuse(why: str) -> int:
    print(f"error: {why}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
