"""All sections at released depth, into a JSON file that is written after each.

``python -m devkit.pretended_cuda.soak FILE``, with tests/ and benchmarks/ on PYTHONPATH. What the file holds already is
not done again. Exits with 1 if a section misses a bar.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch

from asg_core.runs.folder import write_json
from devkit.pretended_cuda.bars import complaints
from devkit.pretended_cuda.card import PretendedCuda
from devkit.pretended_cuda.workload import SECTIONS, Section, Workload
from gpu_models import NAMES


def main(words: list[str] | None = None) -> int:
    """Run what is missing; exit code."""
    parser = argparse.ArgumentParser(prog="python -m devkit.pretended_cuda.soak", description=__doc__)
    parser.add_argument("file", type=Path, help="JSON of earlier sections, to be completed")
    parser.add_argument("--backbones", nargs="+", choices=NAMES, default=NAMES, help="by default all")
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=SECTIONS, help="by default all")
    parser.add_argument("--scale", choices=("full", "slice"), default="full", help="slice: two layers of each kind")
    given = parser.parse_args(words)
    torch.set_num_threads(1)
    done: dict[str, Any] = json.loads(given.file.read_text(encoding="utf-8")) if given.file.exists() else {}
    for name in given.backbones:
        mine = done.setdefault(name, {})
        missing = [section for section in given.sections if section not in mine]
        if not missing:
            continue
        with PretendedCuda() as card:
            workload = Workload(card, name, given.scale)
            for section in missing:
                seen = workload.run(section)
                mine[section] = as_json(seen)
                write_json(given.file, done)
                print(f"{name}, {section}: {seen.seconds:.0f} s; {'; '.join(complaints(seen)) or 'ok'}", flush=True)
    return int(any(section["complaints"] for mine in done.values() for section in mine.values()))


def as_json(section: Section) -> dict[str, Any]:
    """Plain data."""
    return {
        "complaints": complaints(section),
        "seconds_here": round(section.seconds, 1),
        "planned_flops": section.planned_flops,
        "launches": section.counts.launches,
        **section.counts.as_json(),
    }


if __name__ == "__main__":
    sys.exit(main())
