"""Before/after of the embedded backbone with controls, as benchmarks/PROTOCOL.md says.

    python benchmarks/gains.py --arms full --seeds 0 1 2 3 4 5 --workers 2

Each run is a subprocess `asg train` with one thread. Finished runs in --out are reused, so the command can be repeated;
the tables hold every finished run there.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

from asg_core.evaluation.compare import compare
from asg_core.evaluation.records import EvalItem

HERE = Path(__file__).parent
ARMS: dict[str, list[str]] = {
    "full": [],
    "random rewards": ["control=random_rewards"],
    "shuffled votes": ["control=shuffled_votes"],
    "no agreement gate": ["solve.min_agreement=0"],
    "z-scored advantages": ["policy.solver_advantage=z_score"],
    "hard fidelity": ["generate.fidelity=vote"],
    "published update": [
        "policy.solver_advantage=ema",
        "solve.min_agreement=0",
        "generate.fidelity=vote",
        "images_per_step=1",
        "generate.prompts_per_step=1",
        "generate.candidates=3",
    ],
}


def folder(arm: str, seed: int, out: Path) -> Path:
    """Where the run of one arm and seed is."""
    return out / f"{arm.replace(' ', '-')}-{seed}"


def summary_of(run: Path) -> dict[str, Any] | None:
    """The summary of a run that reached its end, else None."""
    file = run / "summary.json"
    summary: dict[str, Any] | None = json.loads(file.read_text()) if file.is_file() else None
    return summary if summary and not summary["interrupted"] else None


def train(arm: str, seed: int, out: Path) -> None:
    """Run one arm with one seed unless it is already there."""
    run = folder(arm, seed, out)
    if summary_of(run) is None:
        shutil.rmtree(run, ignore_errors=True)
        command = [sys.executable, "-m", "asg_core", "train", *ARMS[arm], f"seed={seed}", f"out={run}"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        if done.returncode:
            raise SystemExit(f"{' '.join(command)}\n{done.stderr}")
        print(f"{arm}, seed {seed}: done", flush=True)


def items(run: Path, name: str, seed: int) -> list[EvalItem]:
    """One evaluation of a run, keys made unique across seeds."""
    rows = json.loads((run / "evaluation" / f"{name}.json").read_text())
    return [EvalItem(r["section"], r["category"], f"{seed}/{r['key']}", r["score"]) for r in rows]


def table(arm: str, runs: dict[int, Path]) -> list[dict[str, Any]]:
    """One row per section: pooled comparison, and the range of the seeds' own differences."""
    pooled = compare(
        [i for seed, run in runs.items() for i in items(run, "before", seed)],
        [i for seed, run in runs.items() for i in items(run, "after", seed)],
    )
    single = {
        seed: {
            (r.section, r.category): r.difference
            for r in compare(items(run, "before", seed), items(run, "after", seed))
        }
        for seed, run in runs.items()
    }
    rows = []
    for row in pooled:
        differences = [s[row.section, row.category] for s in single.values() if (row.section, row.category) in s]
        rows.append(
            {"arm": arm, "seeds": len(runs), **row.__dict__, "lowest": min(differences), "highest": max(differences)}
        )
    return rows


def markdown(rows: Iterable[dict[str, Any]]) -> str:
    """The section rows as a Markdown table, in points."""
    head = [
        "| arm | section | seeds | items | before | after | difference | 95 % interval | seeds' range | p |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    return "\n".join(head + [_line(r) for r in rows if r["category"] == "all"])


def _line(r: dict[str, Any]) -> str:
    points = {k: 100 * v for k, v in r.items() if isinstance(v, float)}
    return (
        f"| {r['arm']} | {r['section']} | {r['seeds']} | {r['n']} | {points['before']:.1f} | {points['after']:.1f} "
        f"| {points['difference']:+.1f} | {points['ci_low']:+.1f} to {points['ci_high']:+.1f} "
        f"| {points['lowest']:+.1f} to {points['highest']:+.1f} | {r['p_value']:.2g} |"
    )


def main() -> None:
    """Run what is missing, then write the table and the raw rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--seeds", nargs="+", type=int, default=list(range(6)))
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("runs/gains"))
    args = parser.parse_args()
    jobs = [(arm, seed) for arm in args.arms for seed in args.seeds]
    with ThreadPoolExecutor(args.workers) as pool:
        list(pool.map(lambda job: train(*job, args.out), jobs))
    rows, seconds = [], []
    for arm in ARMS:
        summaries = {seed: summary_of(folder(arm, seed, args.out)) for seed in range(100)}
        runs = {seed: folder(arm, seed, args.out) for seed, summary in summaries.items() if summary}
        seconds += [summary["seconds"] for summary in summaries.values() if summary]
        rows += table(arm, runs) if runs else []
    versions = ", ".join(f"{name} {version(name)}" for name in ("asg-core", "torch", "transformers", "peft"))
    header = (
        f"# Gains of the embedded backbone\n\nWritten by `python benchmarks/gains.py`, {date.today()}; {versions}; "
        f"Python {platform.python_version()}, one thread a run. Protocol: PROTOCOL.md. Scores in points (0 to 100). "
        f"Steps took {min(seconds):.0f} to {max(seconds):.0f} s a run while other work shared the two cores; "
        "evaluation is not counted.\n\n"
    )
    (HERE / "GAINS.md").write_text(header + markdown(rows) + "\n", encoding="utf-8")
    (HERE / "gains.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    print(markdown(rows))


if __name__ == "__main__":
    main()
