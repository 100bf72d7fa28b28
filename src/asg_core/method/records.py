"""What a step leaves behind: groups to learn from, and everything a person may want to see of it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

from asg_core.backbones.interface import ImageSample, TextSample
from asg_core.data.image_pool import PoolImage
from asg_core.method.answers import Vote
from asg_core.method.prompts import Spec
from asg_core.method.rewards import CandidateScores, ProposerReward


@dataclass(eq=False)
class Answer:
    """One sampled answer under one framing, its canonical label, and what the Solver learns from it."""

    framing: str
    sample: TextSample
    label: str
    reward: float | None = None
    advantage: float | None = None


@dataclass(eq=False)
class Solution:
    """What the Solver said to one question: answers to vote on, their vote, and the greedy answer with its raw STE in
    nats (None where STE is off or could not be measured)."""

    answers: list[Answer]
    vote: Vote
    greedy: TextSample | None = None
    ste: float | None = None


@dataclass(eq=False)
class Question:
    """One Proposer completion and all that followed from it.

    ``text`` is None when the gate failed, and ``gate`` says why; then no answer, vote or entropy exists.
    """

    completion: TextSample
    text: str | None
    gate: str | None
    answers: list[Answer] = field(default_factory=list)
    vote: Vote | None = None
    greedy: TextSample | None = None
    ste: float | None = None
    ste_percentile: float | None = None
    scored: ProposerReward | None = None
    reward: float | None = None
    advantage: float | None = None
    learned: bool = False


@dataclass(eq=False)
class UnderstandingItem:
    """One image of an understanding step with its group of questions.

    ``mine`` is false for an item of another process: its record is complete, its pixels are not here.
    """

    source: PoolImage
    questions: list[Question]
    mine: bool = True


@dataclass(eq=False)
class SpecQuestion:
    """A question of a drawing spec: what the Proposer expects, what the Solver sees in the source image.

    ``samples`` are the Solver's answers on the source image, one per scoring framing; ``reference`` is their majority
    label if at least two thirds agree, else None.
    """

    text: str
    expected: str
    samples: list[TextSample]
    labels: list[str]
    reference: str | None


@dataclass(eq=False)
class Candidate(CandidateScores):
    """One drawn image and its judgement: ``labels[q]`` answer kept question q, ``majorities[q]`` is their winner.

    ``signal`` is the regression weight or the advantage; None where a score was not finite, so that it is left out.
    """

    sample: ImageSample
    labels: list[list[str]] = field(default_factory=list)
    majorities: list[str] = field(default_factory=list)
    caption: str = ""
    reward: float = 0.0
    signal: float | None = None


@dataclass(eq=False)
class GenerationItem:
    """One image of a generation step: its spec, kept questions and candidates; ``spec`` is None when it was skipped.

    ``mine`` as in :class:`UnderstandingItem`; trajectories are not here either.
    """

    source: PoolImage
    tries: int = 0
    spec: Spec | None = None
    questions: list[SpecQuestion] = field(default_factory=list)
    quality: float = 0.0
    candidates: list[Candidate] = field(default_factory=list)
    mine: bool = True

    @property
    def kept(self) -> list[SpecQuestion]:
        """The questions with a reference."""
        return [q for q in self.questions if q.reference is not None]


Kind = Literal["understanding", "generation"]


def mean(values: Iterable[float | None]) -> float | None:
    """Arithmetic mean of the values that exist and are finite, or None if there is none."""
    present = [v for v in values if v is not None and math.isfinite(v)]
    return sum(present) / len(present) if present else None
