"""Held-out questions answered as training answers them: votes, their entropy, token entropy, and the truth."""

from __future__ import annotations

from collections.abc import Sequence

from asg_core.backbones.interface import Backbone, Role
from asg_core.config.schema import RunConfig
from asg_core.config.seeding import derive_seed
from asg_core.evaluation.truth import KnownQuestion
from asg_core.method.answers import same_answer
from asg_core.method.understanding import solve_questions
from asg_lab.study.signals.rows import Solved

_BATCH = 35


def solve_held_out(
    backbone: Backbone, role: Role | None, model: str, questions: Sequence[KnownQuestion], config: RunConfig
) -> list[Solved]:
    """Answer every question under the run's framings, sampled, and once greedily under the canonical one.

    Args:
        backbone: the model.
        role: Role.SOLVER for the trained Solver, None for the base.
        model: how the rows name it.
        questions: held out, with their true answers.
        config: of the run: framings, temperature, token limit, STE reduction (max where the run had STE off), seed.
    """
    if config.ste.reduce == "off":
        config = config.model_copy(update={"ste": config.ste.model_copy(update={"reduce": "max"})})

    def seed(*path: int | str) -> int:
        return derive_seed(config.seed, "signals", *(path[1:] if path[0] == "solve" else path))

    rows = []
    for start in range(0, len(questions), _BATCH):
        batch = questions[start : start + _BATCH]
        asked = [(q.image, q.question) for q in batch]
        for q, found in zip(batch, solve_questions(backbone, asked, config, seed, first=start, role=role), strict=True):
            right = same_answer(found.vote.majority, q.answer, q.question)
            rows.append(
                Solved(
                    model,
                    config.seed,
                    q.category,
                    q.question,
                    found.ste,
                    found.vote.entropy,
                    found.vote.majority_share,
                    right,
                )
            )
    return rows
