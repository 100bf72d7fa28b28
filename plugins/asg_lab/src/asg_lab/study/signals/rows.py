"""The raw rows of a study of signals: one held-out answer, or one thing that happened in training, beside the truth.

A cluster is one image of one step of one run; its rows are not independent of each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields
from typing import Any, TypeVar

BASE = "base"
"""The model before training, among the models of the rows."""


@dataclass(frozen=True)
class Solved:
    """A held-out question, answered under all framings and once greedily.

    Attributes:
        model: :data:`BASE` or the name of the arm whose Solver answered.
        seed: of the run and of the questions.
        category: kind of question.
        question: its text.
        ste: raw STE in nats, None where it is missing.
        h_sc: entropy of the vote in nats.
        f: share of the majority.
        right: whether the majority is the true answer.
    """

    model: str
    seed: int
    category: str
    question: str
    ste: float | None
    h_sc: float
    f: float
    right: bool


@dataclass(frozen=True)
class Asked:
    """A question that the Proposer asked in training and the Solver answered.

    Attributes:
        model: arm of the run.
        seed: of the run.
        step: of the run, from 1.
        image: cluster, place of the image in the step.
        question: its text.
        truth: the true answer, None where the question has none.
        right: whether the majority is the truth; None where there is none.
        f: share of the majority.
        h_sc: entropy of the vote in nats.
        ste: raw STE in nats.
        reward: of the Proposer.
        learned: whether the Solver learnt from the vote.
    """

    model: str
    seed: int
    step: int
    image: int
    question: str
    truth: str | None
    right: bool | None
    f: float
    h_sc: float
    ste: float | None
    reward: float | None
    learned: bool


@dataclass(frozen=True)
class Referenced:
    """A reference answer that candidates were judged by, and whether it is true of the source image."""

    model: str
    seed: int
    step: int
    image: int
    question: str
    reference: str
    truth: str | None
    right: bool | None


@dataclass(frozen=True)
class Drawn:
    """A candidate of a generation step.

    Attributes:
        model, seed, step, image: as in :class:`Asked`.
        prompt: what was to be drawn.
        reward: of the Generator.
        s_fid: fidelity as the Solver judged it.
        fidelity: true fidelity: share of the kept questions with a true answer on the source whose true answer on the
            drawing is the same; None where no question has one.
        shows: whether the drawing truly shows its prompt; None where that cannot be told.
    """

    model: str
    seed: int
    step: int
    image: int
    prompt: str
    reward: float | None
    s_fid: float | None
    fidelity: float | None
    shows: bool | None


Row = Solved | Asked | Referenced | Drawn


R = TypeVar("R", Solved, Asked, Referenced, Drawn)


def as_table(kind: type[Row], rows: Sequence[Row]) -> dict[str, Any]:
    """Columns and rows of one kind, for JSON: {"columns": [...], "rows": [[...], ...]}."""
    return {"columns": [field.name for field in fields(kind)], "rows": [astuple(row) for row in rows]}


def from_table(kind: type[R], table: dict[str, Any]) -> list[R]:
    """The inverse of :func:`as_table`. Raises ValueError where the columns are not those of ``kind``."""
    if table["columns"] != [field.name for field in fields(kind)]:
        raise ValueError(f"columns {table['columns']} are not those of {kind.__name__}")
    return [kind(*row) for row in table["rows"]]
