"""The base table of the model card: what one framing knows, what a vote over the framings knows, how well it draws."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean

import numpy as np
import torch

from asg_core.backbones.interface import Backbone, ImageRequest, ImageSampling, Role, TextRequest, TextSampling
from asg_core.backbones.manifest import LoadRequest
from asg_core.config.seeding import derive_seed
from asg_core.method.answers import canonical_label, same_answer, vote
from asg_core.method.prompts import FRAMINGS, HELD_OUT_FRAMINGS, frame
from asg_core.tiny.backbone import load
from asg_core.tiny.categories import CATEGORIES
from asg_core.tiny.detector import read_scene
from asg_core.tiny.evaluation import ANSWER_TOKENS, DRAWINGS, QUESTIONS, TEMPERATURES, make_questions, make_tasks
from asg_core.tiny.questions import KINDS
from asg_core.tiny.world import photograph

Table = Mapping[str, Mapping[str, float]]
"""Row -> column -> score in [0, 1]."""


def understanding_table(backbone: Backbone, role: Role | None, seed: int, count: int = QUESTIONS) -> Table:
    """Accuracy by kind of question: each framing alone, their mean and their vote, greedy and sampled at T = 1."""
    noise = np.random.default_rng(derive_seed(seed, "tiny", "evaluation", "noise"))
    framings = FRAMINGS + HELD_OUT_FRAMINGS
    rows: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    questions = make_questions(count, seed)
    requests = []
    for number, (scene, question) in enumerate(questions):
        image = photograph(scene, noise)
        requests += [
            TextRequest(frame(question.text, f), image, derive_seed(seed, number, index))
            for index, f in enumerate(framings)
        ]
    answers: dict[float, list[str]] = {0.0: [], 1.0: []}
    for start in range(0, len(requests), 400):
        for temperature, texts in answers.items():
            found = backbone.solve(requests[start : start + 400], TextSampling(ANSWER_TOKENS, temperature), role=role)
            texts += [sample.text for sample in found]
    for number, (_, question) in enumerate(questions):
        for temperature, texts in answers.items():
            own = texts[number * len(framings) : (number + 1) * len(framings)]
            right = [float(same_answer(text, question.answer, question.text)) for text in own]
            decided = vote([canonical_label(text, question.text) for text in own[: len(FRAMINGS)]], seed=number)
            agreed = float(same_answer(decided.majority, question.answer, question.text))
            kind = "greedy" if temperature == 0 else "sampled"
            for index, value in enumerate(right if temperature == 0 else []):
                rows[f"framing {index}" if index < len(FRAMINGS) else f"held-out {index - len(FRAMINGS)}"][
                    question.kind
                ].append(value)
            rows[f"{kind}, mean of 7"][question.kind].append(fmean(right[: len(FRAMINGS)]))
            rows[f"{kind}, mean of held-out"][question.kind].append(fmean(right[len(FRAMINGS) :]))
            rows[f"{kind}, vote of 7"][question.kind].append(agreed)
    return {row: {kind: fmean(columns[kind]) for kind in KINDS} for row, columns in rows.items()}


def drawing_table(backbone: Backbone, role: Role | None, seed: int, count: int = DRAWINGS) -> Table:
    """Share of test prompts fulfilled, by category, at each temperature (one row for flow models)."""
    _, tasks = make_tasks(0, count, seed)
    tokens = backbone.manifest.capabilities.image_loss == "tokens"
    table: dict[str, dict[str, float]] = {}
    for temperature in TEMPERATURES if tokens else (1.0,):
        requests = [ImageRequest(task.prompt, derive_seed(seed, "table", i)) for i, task in enumerate(tasks)]
        drawn = backbone.generate(requests, ImageSampling("quality", temperature), role=role)
        columns: dict[str, list[float]] = {category: [] for category in CATEGORIES}
        for task, sample in zip(tasks, drawn, strict=True):
            columns[task.category].append(float(task.fulfilled(read_scene(sample.image))))
        table[f"temperature {temperature}" if tokens else "flow"] = {
            name: fmean(values) for name, values in columns.items()
        }
    return table


def format_table(table: Table, columns: Sequence[str]) -> str:
    """Fixed-width text: one line per row, the mean over the columns last."""
    widths = [max(len(column), 6) for column in columns]
    lines = [" " * 26 + "  ".join(c.rjust(w) for c, w in zip(columns, widths, strict=True)) + "     all"]
    for row, cells in table.items():
        values = "  ".join(f"{100 * cells[c]:.1f}".rjust(w) for c, w in zip(columns, widths, strict=True))
        lines.append(f"{row:<26}{values}  {100 * fmean(cells[c] for c in columns):6.1f}")
    return "\n".join(lines)


def print_table(weights: Path | None, seed: int) -> None:
    """Measure a base model (the shipped one when ``weights`` is None) and print its tables."""
    torch.set_num_threads(1)
    backbone = load(LoadRequest(weights=weights))
    print(format_table(understanding_table(backbone, None, seed), tuple(KINDS)), end="\n\n")
    print(format_table(drawing_table(backbone, None, seed), CATEGORIES))
