"""Do STE and vote entropy know when the embedded backbone is wrong? AUROCs with intervals, as PROTOCOL.md says.

    python benchmarks/signals.py [--run DIR] [--seeds 0 1 2 3 4 5]

The base model (or the evolved Solver of a run) answers held-out questions under the seven framings at temperature 1,
and once greedily. Writes benchmarks/SIGNALS.md when no run is given.
"""

from __future__ import annotations

import argparse
from datetime import date
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from asg_core import load_backbone
from asg_core.answers import canonical_label, same_answer, vote
from asg_core.entropy import solver_token_entropy
from asg_core.prompts import CANONICAL_FRAMING, FRAMINGS, frame
from asg_core.roles import Backbone, Role, TextRequest, TextSampling
from asg_core.seeds import derive_seed
from asg_core.tiny.evaluation import make_questions
from asg_core.tiny.world import photograph

QUESTIONS = 490
BATCH = 35
Rows = NDArray[np.float64]


def measure(backbone: Backbone, role: Role | None, seed: int) -> Rows:
    """(n, 4): raw STE (NaN if missing), H_sc, majority share, whether the majority is wrong (0 or 1)."""
    noise = np.random.default_rng(derive_seed(seed, "signals", "noise"))
    rows = []
    questions = make_questions(QUESTIONS, seed)
    for start in range(0, len(questions), BATCH):
        batch = [(photograph(scene, noise), q) for scene, q in questions[start : start + BATCH]]
        framed = [
            TextRequest(frame(q.text, framing), image, derive_seed(seed, "signals", start + i, j))
            for i, (image, q) in enumerate(batch)
            for j, framing in enumerate(FRAMINGS)
        ]
        answers = iter(backbone.solve(framed, TextSampling(4, 1.0), role))
        canonical = [TextRequest(frame(q.text, CANONICAL_FRAMING), image, 0) for image, q in batch]
        for (_, q), greedy in zip(batch, backbone.solve(canonical, TextSampling(4, 0.0), role), strict=True):
            tally = vote([canonical_label(next(answers).text, q.text) for _ in FRAMINGS], seed)
            ste = solver_token_entropy(greedy, 5, "max")
            wrong = not same_answer(tally.majority, q.answer, q.text)
            rows.append([np.nan if ste is None else ste, tally.entropy, tally.f, float(wrong)])
    return np.array(rows)


def auroc(score: Rows, positive: Rows) -> float:
    """Probability that a positive scores higher than a negative, ties counting half; NaN if one class is empty."""
    high, low = score[positive == 1], score[positive == 0]
    if not len(high) or not len(low):
        return float("nan")
    pairs = (high[:, None] > low).mean() + 0.5 * (high[:, None] == low).mean()
    return float(pairs)


def interval(score: Rows, positive: Rows, resamples: int = 2000) -> tuple[float, float]:
    """95 % bootstrap interval of the AUROC, questions resampled."""
    rng = np.random.default_rng(0)
    draws = []
    for _ in range(resamples):
        index = rng.integers(len(score), size=len(score))
        draws.append(auroc(score[index], positive[index]))
    low, high = np.nanquantile(draws, [0.025, 0.975])
    return float(low), float(high)


def line(name: str, score: Rows, wrong: Rows) -> str:
    """One table row."""
    low, high = interval(score, wrong)
    return f"| {name} | {len(score)} | {int(wrong.sum())} | {auroc(score, wrong):.3f} | {low:.3f} to {high:.3f} |"


def main() -> None:
    """Measure and print; the base model's table is also written."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path)
    parser.add_argument("--seeds", nargs="+", type=int, default=list(range(6)))
    args = parser.parse_args()
    torch.set_num_threads(1)
    backbone, role = load_backbone("tiny", device="cpu"), None
    if args.run is not None:
        role = Role.SOLVER
        backbone.load_role(role, args.run / "adapters" / role.value)
    rows = np.concatenate([measure(backbone, role, seed) for seed in args.seeds])
    ste, entropy, share, wrong = rows.T
    known = np.isfinite(ste)
    unanimous = known & (share == 1.0)
    table = "\n".join(
        [
            "| signal for a wrong majority | questions | wrong | AUROC | 95 % interval |",
            "|---|---|---|---|---|",
            line("raw STE, questions where all seven agree", ste[unanimous], wrong[unanimous]),
            line("raw STE, all questions", ste[known], wrong[known]),
            line("H_sc, all questions", entropy, wrong),
        ]
    )
    print(table)
    if args.run is None:
        header = (
            f"# Signals of the embedded backbone\n\nWritten by `python benchmarks/signals.py`, {date.today()}; "
            f"asg-core {version('asg-core')}, torch {torch.__version__}. Base model, held-out questions of seeds "
            f"{', '.join(map(str, args.seeds))}. Protocol: PROTOCOL.md.\n\n"
        )
        (Path(__file__).parent / "SIGNALS.md").write_text(header + table + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
