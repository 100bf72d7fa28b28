"""The generation step: specify, draw candidates, judge them with the Solver (METHOD, Generation step).

    image --Proposer--> prompt t, 2-3 questions --Solver, 3 framings--> references
    t --Generator--> N_g candidates --Solver--> fidelity, contradiction, caption -> cycle; candidates -> diversity
    R_g = quality * clip((.65 S_fid + .20 S_cyc + .10 S_div)/.95 - .20 S_ctr, 0, 1)

The source image is only ever looked at by the Proposer and the Solver; the Generator learns from its own candidates.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch

from asg_core.backbones.interface import (
    Backbone,
    ImageRequest,
    ImageSampling,
    Role,
    TextRequest,
    TextSample,
    TextSampling,
)
from asg_core.config.schema import RunConfig
from asg_core.data.image_pool import PoolImage
from asg_core.method.advantages import leave_one_out, regression_weights
from asg_core.method.answers import canonical_label, same_answer, vote
from asg_core.method.context import StepContext
from asg_core.method.prompts import CAPTION_PROMPT, SCORING_FRAMINGS, SPEC_PROMPT, GateFailure, Spec, frame, parse_spec
from asg_core.method.records import Candidate, GenerationItem, SpecQuestion
from asg_core.method.rewards import (
    CandidateScores,
    contradiction,
    fidelity,
    generation_reward,
    reference_label,
    spec_quality,
)
from asg_core.method.similarity import cycle_score, diversity

MAX_TRIES = 3
"""Spec attempts before an image is skipped and counted (METHOD, generation step 1)."""

MIN_KEPT = 2
"""Fewest questions with a reference that a spec needs."""


@torch.no_grad()
def generation_step(model: Backbone, images: Sequence[PoolImage], ctx: StepContext) -> list[GenerationItem]:
    """Specify, draw and judge for one batch of images; fill every score, reward and learning signal.

    Images whose spec fails ``MAX_TRIES`` times come back with ``spec=None`` and no candidates.

    Args:
        model: specifies, draws and judges.
        images: this process's share of the step's images, perhaps none.
        ctx: of the step.

    Returns:
        the items of all processes, in the order of the step's images.
    """
    items = specify(model, images, ctx)
    draw(model, items, ctx)
    judge(model, items, ctx)
    compare(model, items)
    items = ctx.gather(items)
    reward_generator(items, ctx, regression=uses_regression(model, ctx.config))
    return items


def uses_regression(model: Backbone, config: RunConfig) -> bool:
    """Return whether the Generator learns by reward-weighted regression (else: policy gradient on image tokens)."""
    if config.generate.update == "auto":
        return model.manifest.capabilities.image_loss == "flow"
    return config.generate.update == "regression"


def specify(model: Backbone, images: Sequence[PoolImage], ctx: StepContext) -> list[GenerationItem]:
    """Have each image turned into a drawing prompt with questions whose answers the Solver agrees on."""
    items = [GenerationItem(source) for source in images]
    if images:
        model.prefill([source.image for source in images], [Role.PROPOSER, Role.SOLVER])
    for attempt in range(MAX_TRIES):
        pending = [(i, item) for i, item in enumerate(items, start=ctx.offset) if item.spec is None]
        if not pending:
            break
        written = _write_specs(model, pending, ctx, attempt)
        groups = _reference_answers(model, written, ctx, attempt)
        for (i, item, spec), answers in zip(written, groups, strict=True):
            _keep(item, spec, answers, ctx.seed("reference", i))
    return items


def _write_specs(
    model: Backbone, pending: Sequence[tuple[int, GenerationItem]], ctx: StepContext, attempt: int
) -> list[tuple[int, GenerationItem, Spec]]:
    ask = ctx.config.ask
    requests = [TextRequest(SPEC_PROMPT, item.source.image, ctx.seed("spec", i, attempt)) for i, item in pending]
    samples = model.ask(requests, TextSampling(ask.spec_max_new_tokens, ask.temperature))
    written = []
    for (i, item), sample in zip(pending, samples, strict=True):
        item.tries = attempt + 1
        spec = parse_spec(sample.text)
        if not isinstance(spec, GateFailure) and len(spec.questions) >= MIN_KEPT:
            written.append((i, item, spec))
    return written


def _reference_answers(
    model: Backbone, written: Sequence[tuple[int, GenerationItem, Spec]], ctx: StepContext, attempt: int
) -> list[list[list[TextSample]]]:
    """Greedy answers about the source image, by spec, question and scoring framing; seeds play no part."""
    asked = [(item, question) for _, item, spec in written for question, _ in spec.questions]
    if not asked:
        return []
    requests = [
        TextRequest(frame(question, framing), item.source.image, ctx.seed("reference", attempt, i, j))
        for i, (item, question) in enumerate(asked)
        for j, framing in enumerate(SCORING_FRAMINGS)
    ]
    samples = iter(model.solve(requests, TextSampling(ctx.config.solve.max_new_tokens, temperature=0.0)))
    return [[[next(samples) for _ in SCORING_FRAMINGS] for _ in spec.questions] for _, _, spec in written]


def _keep(item: GenerationItem, spec: Spec, answers: Sequence[list[TextSample]], seed: int) -> None:
    """Keep the spec if enough of its questions have a reference."""
    questions = []
    for (question, expected), group in zip(spec.questions, answers, strict=True):
        labels = [canonical_label(s.text, question) for s in group]
        questions.append(SpecQuestion(question, expected, group, labels, reference_label(vote(labels, seed))))
    kept = [(q.text, q.reference) for q in questions if q.reference is not None]
    if len(kept) >= MIN_KEPT:
        item.spec, item.questions = spec, questions
        item.quality = spec_quality(kept, spec.raw_count)


def draw(model: Backbone, items: Sequence[GenerationItem], ctx: StepContext) -> None:
    """Draw N_g candidates for every spec, as one batch."""
    specified = [item for item in items if item.spec is not None]
    first = ctx.gather.before(len(specified))
    if not specified:
        return
    settings = ctx.config.generate
    requests = [
        ImageRequest(item.spec.prompt, ctx.seed("draw", i, j))
        for i, item in enumerate(specified, start=first)
        if item.spec is not None
        for j in range(settings.candidates)
    ]
    samples = iter(model.generate(requests, ImageSampling("rollout", settings.temperature)))
    for item in specified:
        item.candidates = [Candidate(next(samples)) for _ in range(settings.candidates)]


def judge(model: Backbone, items: Sequence[GenerationItem], ctx: StepContext) -> None:
    """Ask the kept questions on every candidate and have it captioned, in one batch; fidelity and contradiction."""
    candidates = [c for item in items for c in item.candidates]
    judged = [(c, q) for item in items for c in item.candidates for q in item.kept]
    first = ctx.gather.before(len(judged))
    if not candidates:
        return
    solve = ctx.config.solve
    requests = [
        TextRequest(frame(q.text, framing), c.sample.image, ctx.seed("judge", i, j))
        for i, (c, q) in enumerate(judged, start=first)
        for j, framing in enumerate(SCORING_FRAMINGS)
    ]
    answers = [TextSampling(solve.max_new_tokens, temperature=0.0)] * len(requests)
    requests += [TextRequest(CAPTION_PROMPT, c.sample.image, ctx.seed("caption", i)) for i, c in enumerate(candidates)]
    captions = [TextSampling(solve.caption_max_new_tokens, temperature=0.0)] * len(candidates)
    samples = iter(model.solve(requests, [*answers, *captions]))
    for i, (c, q) in enumerate(judged, start=first):
        labels = [canonical_label(next(samples).text, q.text) for _ in SCORING_FRAMINGS]
        c.labels.append(labels)
        c.majorities.append(vote(labels, ctx.seed("judge", i)).majority)
    for c in candidates:
        c.caption = next(samples).text.strip()
    for item in items:
        for c in item.candidates:
            answered = [(q.text, m, str(q.reference)) for q, m in zip(item.kept, c.majorities, strict=True)]
            c.contradiction = contradiction(answered)
            c.fidelity = fidelity([float(same_answer(m, reference, text)) for text, m, reference in answered])
    if ctx.config.generate.fidelity == "probability":
        _soften_fidelity(model, judged)


def _soften_fidelity(model: Backbone, judged: Sequence[tuple[Candidate, SpecQuestion]]) -> None:
    """Replace majority fidelity by the Solver's probability of the reference answer on the candidate, averaged over
    the scoring framings. The reference's own sampled tokens are scored, so nothing is re-tokenised."""
    transplanted: list[TextSample] = []
    for c, q in judged:
        agreeing = [s for s, label in zip(q.samples, q.labels, strict=True) if label == q.reference]
        for own, label in zip(q.samples, q.labels, strict=True):
            answer = own if label == q.reference else agreeing[0]
            transplanted.append(replace(answer, request=replace(own.request, image=c.sample.image)))
    scores = iter(model.token_logits(transplanted, Role.SOLVER))
    per_candidate: dict[int, list[float]] = {}
    for c, q in judged:
        total = [float(next(scores).logprobs.sum()) for _ in q.samples]
        probabilities = [1.0 if logprob > 0.0 else math.exp(logprob) for logprob in total]
        per_candidate.setdefault(id(c), []).append(sum(probabilities) / len(probabilities))
    for c, _ in judged:
        c.fidelity = fidelity(per_candidate[id(c)])


def compare(model: Backbone, items: Sequence[GenerationItem]) -> None:
    """Set cycle consistency and diversity of every candidate, from the base model's embeddings."""
    specified = [item for item in items if item.candidates]
    if not specified:
        return
    candidates = [c for item in specified for c in item.candidates]
    written = [item.spec.prompt for item in specified if item.spec is not None]
    # Fetched as a whole: every score is a number of the host.
    texts = model.embed([*written, *(c.caption for c in candidates)]).cpu()
    prompts, captions = texts[: len(written)], texts[len(written) :]
    images = model.embed([c.sample.image for c in candidates]).cpu()
    start = 0
    for row, item in enumerate(specified):
        stop = start + len(item.candidates)
        spread = diversity(images[start:stop])
        for offset, c in enumerate(item.candidates):
            c.cycle = cycle_score(prompts[row], captions[start + offset], images[start + offset])
            c.diversity = spread[offset]
        start = stop


def reward_generator(items: Sequence[GenerationItem], ctx: StepContext, *, regression: bool) -> None:
    """Set R_g of every candidate and what the Generator learns from it.

    Args:
        items: of all processes.
        ctx: of the step.
        regression: whether the signals are regression weights, else advantages.
    """
    drawn = [item for item in items if item.spec is not None]
    groups = [
        [
            generation_reward(
                item.quality,
                CandidateScores(c.fidelity, c.cycle, c.diversity, c.contradiction),
                ctx.variant.without_score,
            )
            for c in item.candidates
        ]
        for item in drawn
    ]
    groups = ctx.variant.rewards(groups, ctx.seed("control", "generator"))
    for item, rewards in zip(drawn, groups, strict=True):
        for c, reward in zip(item.candidates, rewards, strict=True):
            c.reward = reward
        usable = [c for c in item.candidates if math.isfinite(c.reward)]
        finite = [c.reward for c in usable]
        signals = regression_weights(finite, ctx.config.generate.tau) if regression else leave_one_out(finite)
        for c, signal in zip(usable, signals, strict=True):
            c.signal = signal
