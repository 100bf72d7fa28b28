"""The understanding step: ask, solve under N framings, vote, measure entropy, reward (METHOD, Understanding step).

    image --Proposer--> K questions --Solver, N framings--> N answers each --vote--> f, m, H_sc
                                    --Solver, greedy------> STE
    R_p = 0.70 d_ste + 0.30 r_sc        R_s = +info | -0.25 info, times p(label)^0.7

Everything here only samples and scores; the updates are in ``updates``. With several processes each one samples for its
own images; rewards are computed everywhere from the records of all.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from PIL.Image import Image

from asg_core.backbones.interface import Backbone, Role, TextRequest, TextSampling
from asg_core.config.schema import Ask, RunConfig
from asg_core.config.seeding import Seed
from asg_core.data.image_pool import PoolImage
from asg_core.method.answers import canonical_label, vote
from asg_core.method.context import StepContext
from asg_core.method.losses import EmaBaseline, leave_one_out, over_finite, z_score
from asg_core.method.prompts import CANONICAL_FRAMING, FRAMINGS, QUESTION_PROMPT, GateFailure, frame, parse_question
from asg_core.method.records import Answer, Question, Solution, UnderstandingItem
from asg_core.method.rewards import GATED, proposer_reward, solver_learns, solver_rewards
from asg_core.method.token_entropy import RollingPercentile, solver_token_entropy


@torch.no_grad()
def understanding_step(
    model: Backbone,
    images: Sequence[PoolImage],
    ctx: StepContext,
    window: RollingPercentile,
    baseline: EmaBaseline,
) -> list[UnderstandingItem]:
    """Sample, vote and score one batch of images; fill every reward and advantage.

    Args:
        images: this process's share of the step's images, perhaps none.
        window: recent raw STE values; percentiles are taken before this step's values are inserted, so that the order
            of the batch does not matter.
        baseline: the Solver's EMA baseline; moved only when ``policy.solver_advantage == "ema"``.

    Returns:
        the items of all processes, in the order of the step's images.
    """
    items = ask(model, images, ctx)
    solve(model, items, ctx)
    items = ctx.gather(items)
    rank_difficulty(items, window)
    reward_proposer(items, ctx)
    reward_solver(items, ctx, baseline)
    return items


def ask(model: Backbone, images: Sequence[PoolImage], ctx: StepContext) -> list[UnderstandingItem]:
    """Sample K questions about each image; a completion that is none keeps the reason and the gate's reward."""
    if not images:
        return []
    optimizer = ctx.config.optimizer
    learning = optimizer.lr_proposer > 0 or optimizer.lr_solver > 0
    base = [None] if learning else []  # an update needs it too, for its KL
    model.prefill([source.image for source in images], [Role.PROPOSER, Role.SOLVER, *base])
    groups = ask_questions(model, [source.image for source in images], ctx.config.ask, ctx.seed, first=ctx.offset)
    return [UnderstandingItem(source, questions) for source, questions in zip(images, groups, strict=True)]


def ask_questions(
    model: Backbone,
    images: Sequence[Image],
    settings: Ask,
    seed: Seed,
    *,
    first: int = 0,
    role: Role | None = Role.PROPOSER,
) -> list[list[Question]]:
    """Sample ``settings.questions_per_image`` questions about each image, as one batch.

    Args:
        seed: called with ("ask", image, question).
        first: number of ``images[0]`` for the seeds.
        role: whose adapter is on; None for the base model.
    """
    k = settings.questions_per_image
    requests = [
        TextRequest(QUESTION_PROMPT, image, seed("ask", i, j))
        for i, image in enumerate(images, start=first)
        for j in range(k)
    ]
    samples = model.ask(requests, TextSampling(settings.max_new_tokens, settings.temperature), role)
    questions = []
    for sample in samples:
        parsed = parse_question(sample.text) if sample.finish_reason == "stop" else GateFailure("did not end")
        if isinstance(parsed, GateFailure):
            questions.append(Question(sample, None, parsed.reason, scored=GATED))
        else:
            questions.append(Question(sample, parsed, None))
    return [questions[start : start + k] for start in range(0, len(questions), k)]


def solve(model: Backbone, items: Sequence[UnderstandingItem], ctx: StepContext) -> None:
    """Answer every question: N votes under the framings, and one greedy answer whose token entropies are STE."""
    asked = [(item, q) for item in items for q in item.questions if q.text is not None]
    first = ctx.gather.before(len(asked))
    if not asked:
        return
    pairs = [(item.source.image, str(q.text)) for item, q in asked]
    framings = ctx.variant.framings(FRAMINGS[: ctx.config.solve.framings])
    found = solve_questions(model, pairs, ctx.config, ctx.seed, first=first, framings=framings)
    for (_, q), solution in zip(asked, found, strict=True):
        q.answers, q.vote = solution.answers, solution.vote
        q.greedy, q.ste = solution.greedy, solution.ste


def solve_questions(
    model: Backbone,
    questions: Sequence[tuple[Image, str]],
    config: RunConfig,
    seed: Seed,
    *,
    first: int = 0,
    framings: Sequence[str] | None = None,
    role: Role | None = Role.SOLVER,
) -> list[Solution]:
    """Answer each question under every framing, sampled, and once greedily, as one batch; count the votes.

    Args:
        config: how to sample (``solve``) and how to reduce token entropies (``ste``; "off": no greedy answer).
        seed: called with ("solve", question, framing), ("ste", question) and ("vote", question).
        first: number of ``questions[0]`` for the seeds.
        framings: one per vote; None: the first ``solve.framings`` of the method's.
        role: whose adapter is on; None for the base model.
    """
    framings = FRAMINGS[: config.solve.framings] if framings is None else framings
    measured = questions if config.ste.reduce != "off" else []
    requests = [
        TextRequest(frame(text, framing), image, seed("solve", i, j))
        for i, (image, text) in enumerate(questions, start=first)
        for j, framing in enumerate(framings)
    ]
    sampled = [TextSampling(config.solve.max_new_tokens, config.solve.temperature)] * len(requests)
    requests += [
        TextRequest(frame(text, CANONICAL_FRAMING), image, seed("ste", i))
        for i, (image, text) in enumerate(measured, start=first)
    ]
    greedy = [TextSampling(config.solve.max_new_tokens, temperature=0.0)] * len(measured)
    samples = iter(model.solve(requests, [*sampled, *greedy], role))
    solutions = []
    for i, (_, text) in enumerate(questions, start=first):
        answers = [Answer(f, s := next(samples), canonical_label(s.text, text)) for f in framings]
        solutions.append(Solution(answers, vote([a.label for a in answers], seed("vote", i))))
    for solution in solutions[: len(measured)]:
        solution.greedy = next(samples)
        solution.ste = solver_token_entropy(solution.greedy, config.ste.tokens, config.ste.reduce)
    return solutions


def rank_difficulty(items: Sequence[UnderstandingItem], window: RollingPercentile) -> None:
    """Set d_ste of every question with a raw STE, then remember the raw values."""
    measured = [(q, q.ste) for item in items for q in item.questions if q.ste is not None]
    for q, raw in measured:
        q.ste_percentile = window.difficulty(raw)
    for _, raw in measured:
        window.insert(raw)


def reward_proposer(items: Sequence[UnderstandingItem], ctx: StepContext) -> None:
    """Set R_p of every completion, and its z-scored advantage among those about the same image."""
    groups = []
    for item in items:
        for q in item.questions:
            if q.vote is not None:
                q.scored = proposer_reward(q.vote, q.ste_percentile)
        groups.append([q.scored.value for q in item.questions if q.scored is not None])
    groups = ctx.variant.rewards(groups, ctx.seed("control", "proposer"))
    for item, rewards in zip(items, groups, strict=True):
        for q, reward, advantage in zip(item.questions, rewards, over_finite(z_score, rewards), strict=True):
            q.reward, q.advantage = reward, advantage


def reward_solver(items: Sequence[UnderstandingItem], ctx: StepContext, baseline: EmaBaseline) -> None:
    """Set R_s and the advantage of every answer to a question that passes the agreement gate."""
    voted = [(q, q.vote) for item in items for q in item.questions if q.vote is not None]
    learning = [(q, found) for q, found in voted if solver_learns(found, ctx.config.solve.min_agreement)]
    groups = ctx.variant.rewards([solver_rewards(found) for _, found in learning], ctx.seed("control", "solver"))
    chosen = ctx.config.policy.solver_advantage
    advantages = {"leave_one_out": leave_one_out, "z_score": z_score, "ema": baseline.advantages}[chosen]
    for (q, _), rewards in zip(learning, groups, strict=True):
        q.learned = True
        for answer, reward, advantage in zip(q.answers, rewards, over_finite(advantages, rewards), strict=True):
            answer.reward, answer.advantage = reward, advantage
    if chosen == "ema":
        baseline.update([reward for rewards in groups for reward in rewards if math.isfinite(reward)])
