"""Held-out questions answered as training answers them: votes, their entropy, token entropy, and the truth."""

from __future__ import annotations

from collections.abc import Sequence

from asg_core.backbones.interface import Backbone, Role, TextRequest, TextSampling
from asg_core.config.schema import RunConfig
from asg_core.config.seeding import derive_seed
from asg_core.evaluation.truth import KnownQuestion
from asg_core.method.answers import canonical_label, same_answer, vote
from asg_core.method.prompts import CANONICAL_FRAMING, FRAMINGS, frame
from asg_core.method.token_entropy import solver_token_entropy
from asg_lab.study.signals.rows import Solved

_BATCH = 35


def solve_questions(
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
    framings = FRAMINGS[: config.solve.framings]
    sampled = TextSampling(config.solve.max_new_tokens, config.solve.temperature)
    greedy = TextSampling(config.solve.max_new_tokens, 0.0)
    reduce = "max" if config.ste.reduce == "off" else config.ste.reduce
    rows = []
    for start in range(0, len(questions), _BATCH):
        batch = questions[start : start + _BATCH]
        requests = [
            TextRequest(frame(q.question, framing), q.image, derive_seed(config.seed, "signals", start + i, j))
            for i, q in enumerate(batch)
            for j, framing in enumerate(framings)
        ]
        canonical = [TextRequest(frame(q.question, CANONICAL_FRAMING), q.image, 0) for q in batch]
        each = [*[sampled] * len(requests), *[greedy] * len(canonical)]
        answers = iter(backbone.solve([*requests, *canonical], each, role=role))
        votes = [[canonical_label(next(answers).text, q.question) for _ in framings] for q in batch]
        for i, (q, labels, sample) in enumerate(zip(batch, votes, answers, strict=True)):
            tally = vote(labels, derive_seed(config.seed, "signals", "vote", start + i))
            rows.append(
                Solved(
                    model,
                    config.seed,
                    q.category,
                    q.question,
                    solver_token_entropy(sample, config.ste.tokens, reduce),
                    tally.entropy,
                    tally.majority_share,
                    same_answer(tally.majority, q.answer, q.question),
                )
            )
    return rows
