"""What a run rewarded, beside what was true: its samples files, read again with the known world at hand."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from asg_core.evaluation.truth import KnownWorld
from asg_core.method.answers import same_answer
from asg_core.models.weights.inventory import path_inside
from asg_lab.study.signals.rows import Asked, Drawn, Referenced

_Record = dict[str, Any]


def read_training(
    run: Path, model: str, seed: int, world: KnownWorld
) -> tuple[list[Asked], list[Referenced], list[Drawn]]:
    """The rows of all steps of which the run wrote samples (``sample_every_steps``).

    Args:
        run: a run on the backbone's own images, not on a folder of somebody's.
        model: arm of the run.
        seed: of the run.
        world: the truth about images of that seed.
    """
    asked: list[Asked] = []
    referenced: list[Referenced] = []
    drawn: list[Drawn] = []
    for file in sorted((run / "samples").glob("step-*.json")):
        record: _Record = json.loads(file.read_text(encoding="utf-8"))
        for image, item in enumerate(record["items"]):
            where = (model, seed, int(record["step"]), image)
            source = Path(item["source"]).name
            if record["kind"] == "understanding":
                asked += _asked(where, source, item, world)
                continue
            kept = [q for q in item["questions"] if q["kept"]]
            truths = {q["question"]: world.answer(source, q["question"]) for q in kept}
            for q in kept:
                truth = truths[q["question"]]
                right = None if truth is None else same_answer(q["reference"], truth, q["question"])
                referenced.append(Referenced(*where, q["question"], q["reference"], truth, right))
            drawn += _drawn(where, item, truths, run / "samples", world)
    return asked, referenced, drawn


def _asked(where: tuple[str, int, int, int], source: str, item: _Record, world: KnownWorld) -> Iterator[Asked]:
    for q in item["questions"]:
        if q["question"] is None:
            continue
        truth = world.answer(source, q["question"])
        right = None if truth is None else same_answer(q["majority"], truth, q["question"])
        yield Asked(
            *where, q["question"], truth, right, q["f"], q["h_sc"], q["ste_raw"], q["reward"], bool(q["learned"])
        )


def _drawn(
    where: tuple[str, int, int, int], item: _Record, truths: dict[str, str | None], samples: Path, world: KnownWorld
) -> Iterator[Drawn]:
    answerable = {question: truth for question, truth in truths.items() if truth is not None}
    for candidate in item["candidates"]:
        with Image.open(path_inside(samples, candidate["image"], samples)) as file:
            drawing = file.convert("RGB")
        matches = []
        for question, truth in answerable.items():
            there = world.answer_on(drawing, question)
            matches.append(there is not None and same_answer(there, truth, question))
        yield Drawn(
            *where,
            item["prompt"],
            candidate["reward"],
            candidate["s_fid"],
            sum(matches) / len(matches) if matches else None,
            world.shows(drawing, item["prompt"]),
        )
