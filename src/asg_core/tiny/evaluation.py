"""Held-out evaluation of the tiny world, scored by program. May read ground truth; training never sees it.

Understanding: greedy answers to well-posed questions, an equal number of each kind, under the canonical framing, the
seven training framings and three framings never trained on. An item is one question; its score is the share of
framings answered right. Generation: six categories of prompts, one picture each, at the temperature that is best on
validation prompts disjoint from the test prompts; flow models have no temperature. Scenes come from another random
stream than the pool's.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from statistics import fmean

import numpy as np

from asg_core.backbones.interface import ImageRequest, ImageSampling, Role, TextRequest, TextSampling
from asg_core.config.seeding import derive_seed
from asg_core.evaluation.items import EvalItem, EvaluationRequest
from asg_core.method.answers import same_answer
from asg_core.method.prompts import FRAMINGS, HELD_OUT_FRAMINGS, frame
from asg_core.tiny.categories import CATEGORIES, DrawingTask, draw_task
from asg_core.tiny.detector import read_scene
from asg_core.tiny.questions import KINDS, Question, draw_question
from asg_core.tiny.world import Scene, photograph, sample_scene

CANONICAL = "understanding, canonical framing"
TRAINING = "understanding, 7 training framings"
HELD_OUT = "understanding, 3 held-out framings"
GENERATION = "generation"
TEMPERATURES = (1.0, 0.7, 0.5)
QUESTIONS = 490
DRAWINGS = 480
VALIDATION = 180
ANSWER_TOKENS = 4
_BATCH_QUESTIONS = 35
_BATCH_DRAWINGS = 120


def evaluate(request: EvaluationRequest) -> list[EvalItem]:
    """Score a tiny backbone: 490 questions in three sections and 480 drawings; equal seeds give equal items.

    With ``limit`` the questions and drawings are cut to that many; it also caps the validation prompts.
    """
    questions = make_questions(min(request.limit or QUESTIONS, QUESTIONS), request.seed)
    validation, tests = make_tasks(
        min(request.limit or VALIDATION, VALIDATION), min(request.limit or DRAWINGS, DRAWINGS), request.seed
    )
    temperatures = TEMPERATURES if request.backbone.manifest.capabilities.image_loss == "tokens" else (1.0,)
    searched = len(validation) * len(temperatures) if len(temperatures) > 1 else 0
    total = len(questions) + searched + len(tests)
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        request.progress(done, total)

    items = _understanding(request, questions, advance)
    temperature = temperatures[0]
    if searched:
        scores = {t: fmean(_drawn(request, validation, t, "validation", advance)) for t in temperatures}
        temperature = max(temperatures, key=scores.__getitem__)
    for index, (task, score) in enumerate(
        zip(tests, _drawn(request, tests, temperature, "test", advance), strict=True)
    ):
        items.append(EvalItem(GENERATION, task.category, f"{index:03d} {task.prompt}", score))
    return items


def make_questions(count: int, seed: int) -> list[tuple[Scene, Question]]:
    """Scenes with one question each, kinds in turn."""
    rng = random.Random(derive_seed(seed, "tiny", "evaluation", "questions"))
    kinds = tuple(KINDS)
    made: list[tuple[Scene, Question]] = []
    while len(made) < count:
        scene = sample_scene(rng)
        kind = kinds[len(made) % len(kinds)]
        question = draw_question(scene, rng, kind)
        if question.kind == kind:
            made.append((scene, question))
    return made


def make_tasks(validation: int, test: int, seed: int) -> tuple[list[DrawingTask], list[DrawingTask]]:
    """Drawing tasks, the six categories in turn; no prompt of the one list is in the other, a list may repeat one."""
    rng = random.Random(derive_seed(seed, "tiny", "evaluation", "drawings"))

    def rank(prompt: str) -> int:
        return derive_seed(seed, "tiny", "split", prompt) % 4

    # A category of a dozen prompts may have none of rank 0 for a seed; its lowest rank then stands in.
    seen = random.Random(derive_seed(seed, "tiny", "evaluation", "categories"))
    lowest = {c: min(rank(draw_task(c, seen).prompt) for _ in range(200)) for c in CATEGORIES}

    def tasks(count: int, validating: bool) -> list[DrawingTask]:
        made: list[DrawingTask] = []
        while len(made) < count:
            task = draw_task(CATEGORIES[len(made) % len(CATEGORIES)], rng)
            if (rank(task.prompt) == lowest[task.category]) == validating:
                made.append(task)
        return made

    return tasks(validation, True), tasks(test, False)


def _understanding(
    request: EvaluationRequest, questions: Sequence[tuple[Scene, Question]], advance: Callable[[int], None]
) -> list[EvalItem]:
    noise = np.random.default_rng(derive_seed(request.seed, "tiny", "evaluation", "noise"))
    framings = FRAMINGS + HELD_OUT_FRAMINGS
    items: list[EvalItem] = []
    for start in range(0, len(questions), _BATCH_QUESTIONS):
        batch = questions[start : start + _BATCH_QUESTIONS]
        asked = []
        for scene, question in batch:
            image = photograph(scene, noise)
            asked += [TextRequest(frame(question.text, framing), image, 0) for framing in framings]
        role = Role.SOLVER if request.trained else None
        answers = request.backbone.solve(asked, TextSampling(ANSWER_TOKENS, temperature=0.0), role=role)
        for index, (_, question) in enumerate(batch):
            own = answers[index * len(framings) : (index + 1) * len(framings)]
            right = [float(same_answer(answer.text, question.answer, question.text)) for answer in own]
            key = f"{start + index:03d} {question.text}"
            items += [
                EvalItem(CANONICAL, question.kind, key, right[0]),
                EvalItem(TRAINING, question.kind, key, fmean(right[: len(FRAMINGS)])),
                EvalItem(HELD_OUT, question.kind, key, fmean(right[len(FRAMINGS) :])),
            ]
        advance(len(batch))
    return items


def _drawn(
    request: EvaluationRequest,
    tasks: Sequence[DrawingTask],
    temperature: float,
    split: str,
    advance: Callable[[int], None],
) -> list[float]:
    scores: list[float] = []
    for start in range(0, len(tasks), _BATCH_DRAWINGS):
        batch = tasks[start : start + _BATCH_DRAWINGS]
        requests = [
            ImageRequest(task.prompt, derive_seed(request.seed, "tiny", "evaluation", split, start + index))
            for index, task in enumerate(batch)
        ]
        role = Role.GENERATOR if request.trained else None
        drawn = request.backbone.generate(requests, ImageSampling("quality", temperature), role=role)
        scores += [float(task.fulfilled(read_scene(sample.image))) for task, sample in zip(batch, drawn, strict=True)]
        advance(len(batch))
    return scores
