"""easy-VQA: a public set of 64 x 64 pictures of one coloured shape each, with questions (package ``easy-vqa``, MIT).

    asg train images="$(python -m asg_lab.easy_vqa)" ...     its 4000 training images, without questions
    asg eval --suite easy_vqa --run DIR                                  its 9673 test questions, before and after

Not made by this project, so a check that nothing was tailored to the embedded world. What can and cannot be concluded:
docs/datasets.md. The test questions are read here and nowhere else; training is given a folder that holds images alone.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from statistics import fmean

from asg_core.backbones.interface import Role, TextRequest, TextSampling
from asg_core.backbones.registry import resolve
from asg_core.config.seeding import derive_seed
from asg_core.data.image_file import open_image
from asg_core.errors import ConfigError
from asg_core.evaluation.items import EvalItem, EvaluationRequest
from asg_core.method.answers import same_answer
from asg_core.method.prompts import FRAMINGS, HELD_OUT_FRAMINGS, frame

PACKAGE = "easy_vqa"
SHAPES = ("circle", "rectangle", "triangle")
ANSWER_TOKENS = 16
_BATCH = 16


@dataclass(frozen=True)
class HeldOutQuestion:
    """One test question; ``index`` is its place in the package's file."""

    index: int
    text: str
    answer: str
    image: Path

    @property
    def category(self) -> str:
        """ "yes/no", "shape" or "color"."""
        if self.answer in ("yes", "no"):
            return "yes/no"
        return "shape" if self.answer in SHAPES else "color"


def train_images() -> Path:
    """The folder of the installed package's training images. Raises ConfigError if the package is not there."""
    return _data("train/images")


def held_out_questions() -> list[HeldOutQuestion]:
    """All test questions, in the order of the package's file. Raises ConfigError if the package is not there."""
    images = _data("test/images")
    rows = json.loads(_data("test/questions.json").read_text(encoding="utf-8"))
    return [HeldOutQuestion(i, text, answer, images / f"{image}.png") for i, (text, answer, image) in enumerate(rows)]


def evaluate(request: EvaluationRequest) -> list[EvalItem]:
    """Greedy answers to the test questions in three sections, as the embedded evaluation has them.

    Canonical framing, 7 training framings, 3 held-out framings; the score of an item is the share of framings answered
    right, by exact equality of canonical labels. With ``limit``, that many questions drawn by the seed.

    A backbone that announces a closed vocabulary is asked only what it can read and say: questions whose words or
    answer it lacks are left out, and the sections' names say how many are left.

    Raises:
        ConfigError: the package is not installed, or the backbone knows the words of no question.
    """
    questions, note = _within_vocabulary(request, held_out_questions())
    if request.limit is not None and request.limit < len(questions):
        rng = random.Random(derive_seed(request.seed, PACKAGE, "questions"))
        questions = sorted(rng.sample(questions, request.limit), key=lambda q: q.index)
    items: list[EvalItem] = []
    for start in range(0, len(questions), _BATCH):
        batch = questions[start : start + _BATCH]
        for question, right in zip(batch, _answered(request, batch), strict=True):
            key = f"{question.index:04d} {question.text}"
            scores = {
                "canonical framing": right[0],
                "7 training framings": fmean(right[: len(FRAMINGS)]),
                "3 held-out framings": fmean(right[len(FRAMINGS) :]),
            }
            items += [EvalItem(f"easy-VQA, {name}{note}", question.category, key, s) for name, s in scores.items()]
        request.progress(start + len(batch), len(questions))
    return items


def _answered(request: EvaluationRequest, questions: Sequence[HeldOutQuestion]) -> list[list[float]]:
    """For each question 1 or 0 per framing: the training framings, then the held-out ones."""
    framings = FRAMINGS + HELD_OUT_FRAMINGS
    images = {q.image: open_image(q.image) for q in questions}
    asked = [TextRequest(frame(q.text, framing), images[q.image], 0) for q in questions for framing in framings]
    role = Role.SOLVER if request.trained else None
    answers = iter(request.backbone.solve(asked, TextSampling(ANSWER_TOKENS, temperature=0.0), role=role))
    return [[float(same_answer(next(answers).text, q.answer, q.text)) for _ in framings] for q in questions]


def _within_vocabulary(
    request: EvaluationRequest, questions: list[HeldOutQuestion]
) -> tuple[list[HeldOutQuestion], str]:
    manifest = request.backbone.manifest
    if manifest.vocabulary is None:
        return questions, ""
    words: frozenset[str] = resolve(manifest.vocabulary)()
    known = [q for q in questions if words.issuperset(re.findall(r"\w+", f"{q.text} {q.answer}".lower()))]
    if not known:
        raise ConfigError(
            f"backbone {manifest.name!r} cannot be scored on easy-VQA",
            "it lacks words of every question or answer",
            "score a backbone that can read them",
        )
    return known, f" ({len(known)} of {len(questions)} questions, in the model's words)"


def _data(inside: str) -> Path:
    spec = find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError(
            "easy-VQA is not installed", "its images and questions come with a package", "pip install easy-vqa"
        )
    path = Path(next(iter(spec.submodule_search_locations))) / "data" / inside
    if not path.exists():
        raise ConfigError(f"{path} is missing", "the installed easy-vqa is not complete", "pip install easy-vqa==1.0")
    return path


if __name__ == "__main__":
    print(train_images())
