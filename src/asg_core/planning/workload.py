"""Token counts of a step, and the calls that sample its texts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from asg_core.method.prompts import (
    CAPTION_PROMPT,
    FRAMINGS,
    MAX_SPEC_QUESTIONS,
    QUESTION_PROMPT,
    SCORING_FRAMINGS,
    SPEC_PROMPT,
)
from asg_core.models.limits import VOCABULARY_ROWS
from asg_core.planning.shape import ModelShape

if TYPE_CHECKING:
    from asg_core.config.schema import RunConfig

LOGIT_BYTES = 24
"""Of one logit at the largest moment of sampling or scoring: six float32 numbers."""

SPEC_ANSWERS = MAX_SPEC_QUESTIONS * len(SCORING_FRAMINGS)
"""Of a spec's questions about one image, at most."""


@dataclass(frozen=True)
class TextCall:
    """One call that samples text.

    Attributes:
        images: distinct ones.
        nodes: distinct prompts of all images together.
        rows: samples.
        prefix, prompt, new: positions of an image prefix, a prompt, and new tokens of a sample.
    """

    images: int
    nodes: int
    rows: int
    prefix: int
    prompt: int
    new: int


@dataclass(frozen=True)
class Workload:
    """Token counts of one step for a model, a configuration and an image size.

    Attributes:
        image: positions of an image prefix.
        question: of the instruction to ask; ``spec``, ``caption`` likewise.
        framed: of a question of the longest allowed length under the longest framing.
        drawn: positions of a drawn candidate's prefix; 0 if the model cannot draw.
    """

    image: int
    question: int
    framed: int
    spec: int
    caption: int
    drawn: int

    @classmethod
    def of(cls, shape: ModelShape, config: RunConfig, size: tuple[int, int]) -> Workload:
        """Count for images of ``size`` (width, height) in pixels."""
        longest = max(shape.prompt_tokens(framing.replace("{question}", "")) for framing in FRAMINGS)
        return cls(
            image=shape.see(*size).tokens,
            question=shape.prompt_tokens(QUESTION_PROMPT),
            framed=longest + config.ask.max_new_tokens,
            spec=shape.prompt_tokens(SPEC_PROMPT),
            caption=shape.prompt_tokens(CAPTION_PROMPT),
            drawn=shape.see(*shape.drawing.size).tokens if shape.drawing else 0,
        )

    def understanding_calls(self, config: RunConfig, images: int) -> tuple[TextCall, TextCall]:
        """Questions and answers of a step of ``images`` images."""
        questions = images * config.ask.questions_per_image
        framed = questions * config.solve.framings
        greedy = questions if config.ste.reduce != "off" else 0  # for STE, rows of prompts that are there already
        return (
            TextCall(images, images, questions, self.image, self.question, config.ask.max_new_tokens),
            TextCall(images, framed, framed + greedy, self.image, self.framed, config.solve.max_new_tokens),
        )

    def generation_calls(self, config: RunConfig, images: int) -> tuple[TextCall, TextCall, TextCall]:
        """Specs and reference answers of ``images`` images; answers about their candidates, with captions, in one."""
        solve, answers, candidates = config.solve, images * SPEC_ANSWERS, images * config.generate.candidates
        judged, prompt = candidates * (SPEC_ANSWERS + 1), max(self.framed, self.caption)
        longest = max(solve.max_new_tokens, solve.caption_max_new_tokens)
        return (
            TextCall(images, images, images, self.image, self.spec, config.ask.spec_max_new_tokens),
            TextCall(images, answers, answers, self.image, self.framed, solve.max_new_tokens),
            TextCall(candidates, judged, judged, self.drawn, prompt, longest),
        )


def logits_bytes(shape: ModelShape, tokens: int) -> int:
    """Of sampling or scoring ``tokens`` tokens, a part of them at a time."""
    return min(tokens, VOCABULARY_ROWS) * shape.trunk.vocabulary * LOGIT_BYTES
