"""The understanding step: ask, solve under N framings, vote, measure entropy, reward (METHOD, Understanding step).

    image --Proposer--> K questions --Solver, N framings--> N answers each --vote--> f, m, H_sc
                                    --Solver, greedy------> STE
    R_p = 0.70 d_ste + 0.30 r_sc        R_s = +info | -0.25 info, times p(label)^0.7

Everything here only samples and scores; the updates are in ``steps.update``. With several processes each one samples
for its own images; rewards are computed everywhere from the records of all.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from asg_core.backbones.interface import Backbone, Role, TextRequest, TextSampling
from asg_core.config.schema import RunConfig
from asg_core.config.seeding import derive_seed
from asg_core.data.image_pool import PoolImage
from asg_core.method.ablations import perturb_rewards
from asg_core.method.answers import canonical_label, vote
from asg_core.method.policy import EmaBaseline, leave_one_out, over_finite, z_score
from asg_core.method.prompts import CANONICAL_FRAMING, FRAMINGS, QUESTION_PROMPT, GateFailure, frame, parse_question
from asg_core.method.records import Answer, Question, UnderstandingItem
from asg_core.method.rewards import GATED, proposer_reward, solver_learns, solver_rewards
from asg_core.method.token_entropy import RollingPercentile, solver_token_entropy
from asg_core.training.distributed import Processes
from asg_core.training.gather import whole_understanding_step


@torch.no_grad()
def understanding_step(
    backbone: Backbone,
    images: Sequence[PoolImage],
    config: RunConfig,
    step: int,
    window: RollingPercentile,
    baseline: EmaBaseline,
    processes: Processes | None = None,
    first: int = 0,
) -> list[UnderstandingItem]:
    """Sample, vote and score one batch of images; fills every reward and advantage.

    Args:
        images: this process's share of the step's images, perhaps none.
        step: 1-based number of the step; with the run seed it fixes every random draw.
        window: recent raw STE values; percentiles are taken before this step's values are inserted, so that the order
            of the batch does not matter.
        baseline: the Solver's EMA baseline; moved only when ``policy.solver_advantage == "ema"``.
        processes: of the run; None if there is one.
        first: place of ``images[0]`` among the step's images.

    Returns:
        the items of all processes, in the order of the step's images.
    """
    processes = processes or Processes()
    items = []
    if images:
        learning = config.optimizer.lr_proposer > 0 or config.optimizer.lr_solver > 0
        base = [None] if learning else []  # an update needs it too, for its KL
        backbone.prefill([source.image for source in images], [Role.PROPOSER, Role.SOLVER, *base])
        items = _ask(backbone, images, config, step, first)
    questions = [(item, q) for item in items for q in item.questions if q.text is not None]
    (earlier,) = processes.sums_before([len(questions)])
    if questions:
        _solve(backbone, questions, config, step, earlier)
    items = whole_understanding_step(processes, items)
    asked = [q for item in items for q in item.questions if q.text is not None]
    _rank_entropy(asked, window)
    _reward_proposer(items, config, step)
    _reward_solver(asked, config, step, baseline)
    return items


def _ask(
    backbone: Backbone, images: Sequence[PoolImage], config: RunConfig, step: int, first: int
) -> list[UnderstandingItem]:
    k = config.ask.questions_per_image
    requests = [
        TextRequest(QUESTION_PROMPT, source.image, derive_seed(config.seed, step, "ask", i, j))
        for i, source in enumerate(images, start=first)
        for j in range(k)
    ]
    samples = backbone.ask(requests, TextSampling(config.ask.max_new_tokens, config.ask.temperature))
    items = []
    for place, source in enumerate(images):
        questions = []
        for sample in samples[place * k : (place + 1) * k]:
            parsed = parse_question(sample.text) if sample.finish_reason == "stop" else GateFailure("did not end")
            if isinstance(parsed, GateFailure):
                questions.append(Question(sample, None, parsed.reason, scored=GATED))
            else:
                questions.append(Question(sample, parsed, None))
        items.append(UnderstandingItem(source, questions))
    return items


def _solve(
    backbone: Backbone,
    questions: Sequence[tuple[UnderstandingItem, Question]],
    config: RunConfig,
    step: int,
    earlier: int,
) -> None:
    """Answers to vote on and, in the same batch, the greedy answer whose entropies are STE."""
    framings = FRAMINGS[: config.solve.framings]
    if config.control == "one_framing":
        framings = (CANONICAL_FRAMING,) * len(framings)
    measured = questions if config.ste.reduce != "off" else []
    requests = [
        TextRequest(frame(str(q.text), framing), item.source.image, derive_seed(config.seed, step, "solve", i, j))
        for i, (item, q) in enumerate(questions, start=earlier)
        for j, framing in enumerate(framings)
    ]
    sampled = [TextSampling(config.solve.max_new_tokens, config.solve.temperature)] * len(requests)
    requests += [
        TextRequest(frame(str(q.text), CANONICAL_FRAMING), item.source.image, derive_seed(config.seed, step, "ste", i))
        for i, (item, q) in enumerate(measured, start=earlier)
    ]
    greedy = [TextSampling(config.solve.max_new_tokens, temperature=0.0)] * len(measured)
    samples = iter(backbone.solve(requests, [*sampled, *greedy]))
    for i, (_, q) in enumerate(questions, start=earlier):
        q.answers = [Answer(f, s := next(samples), canonical_label(s.text, str(q.text))) for f in framings]
        q.vote = vote([a.label for a in q.answers], derive_seed(config.seed, step, "vote", i))
    for _, q in measured:
        q.greedy = next(samples)
        q.ste = solver_token_entropy(q.greedy, config.ste.tokens, config.ste.reduce)


def _rank_entropy(questions: Sequence[Question], window: RollingPercentile) -> None:
    for q in questions:
        q.ste_percentile = None if q.ste is None else window.difficulty(q.ste)
    for q in questions:
        if q.ste is not None:
            window.insert(q.ste)


def _reward_proposer(items: Sequence[UnderstandingItem], config: RunConfig, step: int) -> None:
    groups = []
    for item in items:
        for q in item.questions:
            if q.vote is not None:
                q.scored = proposer_reward(q.vote, q.ste_percentile)
        groups.append([q.scored.value for q in item.questions if q.scored is not None])
    groups = perturb_rewards(groups, config.control, derive_seed(config.seed, step, "control", "proposer"))
    for item, rewards in zip(items, groups, strict=True):
        for q, reward, advantage in zip(item.questions, rewards, over_finite(z_score, rewards), strict=True):
            q.reward, q.advantage = reward, advantage


def _reward_solver(questions: Sequence[Question], config: RunConfig, step: int, baseline: EmaBaseline) -> None:
    learning = [q for q in questions if q.vote is not None and solver_learns(q.vote, config.solve.min_agreement)]
    groups = [solver_rewards(q.vote) for q in learning if q.vote is not None]
    groups = perturb_rewards(groups, config.control, derive_seed(config.seed, step, "control", "solver"))
    match config.policy.solver_advantage:
        case "leave_one_out":
            advantages = [over_finite(leave_one_out, rewards) for rewards in groups]
        case "z_score":
            advantages = [over_finite(z_score, rewards) for rewards in groups]
        case "ema":
            advantages = [over_finite(baseline.advantages, rewards) for rewards in groups]
            if groups:
                baseline.update([reward for rewards in groups for reward in rewards if math.isfinite(reward)])
    for q, rewards, group in zip(learning, groups, advantages, strict=True):
        q.learned = True
        for answer, reward, advantage in zip(q.answers, rewards, group, strict=True):
            answer.reward, answer.advantage = reward, advantage
