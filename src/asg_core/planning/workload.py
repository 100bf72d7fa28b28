"""Token counts of a step, and what learns in it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from asg_core.backbones.interface import Role
from asg_core.method.prompts import CAPTION_PROMPT, FRAMINGS, QUESTION_PROMPT, SPEC_PROMPT
from asg_core.models.limits import VOCABULARY_ROWS
from asg_core.planning.shape import ModelShape

if TYPE_CHECKING:
    from asg_core.config.schema import RunConfig

LOGIT_BYTES = 24
"""Of one logit at the largest moment of sampling or scoring: six float32 numbers."""


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


def logits_bytes(shape: ModelShape, tokens: int) -> int:
    """Of sampling or scoring ``tokens`` tokens, a part of them at a time."""
    return min(tokens, VOCABULARY_ROWS) * shape.trunk.vocabulary * LOGIT_BYTES


def rates(config: RunConfig) -> dict[Role, float]:
    """Learning rate of each role; a role with rate 0 neither learns nor has moments."""
    settings = config.optimizer
    return {
        Role.PROPOSER: settings.lr_proposer,
        Role.SOLVER: settings.lr_solver,
        Role.GENERATOR: settings.lr_generator,
    }
