"""The generation step: specify, draw candidates, judge them with the Solver (METHOD, Generation step).

    image --Proposer--> prompt t, 2-3 questions --Solver, 3 framings--> references
    t --Generator--> N_g candidates --Solver--> fidelity, contradiction, caption -> cycle; candidates -> diversity
    R_g = quality * clip((.65 S_fid + .20 S_cyc + .10 S_div)/.95 - .20 S_ctr, 0, 1)

The source image is only ever looked at by the Proposer and the Solver; the Generator learns from its own candidates.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import torch
from PIL.Image import Image

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
from asg_core.method.answers import canonical_label, same_answer, vote
from asg_core.method.context import StepContext
from asg_core.method.losses import leave_one_out, over_finite, regression_weights
from asg_core.method.prompts import CAPTION_PROMPT, SCORING_FRAMINGS, SPEC_PROMPT, GateFailure, Spec, frame, parse_spec
from asg_core.method.records import Candidate, GenerationItem, SpecQuestion
from asg_core.method.rewards import (
    contradiction,
    cycle_score,
    diversity,
    fidelity,
    generation_reward,
    reference_label,
    spec_quality,
)

MAX_TRIES = 3
"""Spec attempts before an image is skipped and counted (METHOD, generation step 1)."""

MIN_KEPT = 2
"""Fewest questions with a reference that a spec needs."""


@torch.no_grad()
def generation_step(model: Backbone, images: Sequence[PoolImage], ctx: StepContext) -> list[GenerationItem]:
    """Specify, draw and judge for one batch of images; fill every score, reward and learning signal.

    Images whose spec fails ``MAX_TRIES`` times come back with ``spec=None`` and no candidates.

    Args:
        images: this process's share of the step's images, perhaps none.

    Returns:
        the items of all processes, in the order of the step's images.
    """
    items = specify(model, images, ctx)
    draw(model, items, ctx)
    judge(model, items, ctx)
    compare(model, items)
    items = ctx.gather(items)
    reward_generator(model, items, ctx)
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
        written = _write_specs(model, pending, ctx, attempt) if pending else []
        if written:
            _find_references(model, written, ctx, attempt)
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


def _find_references(
    model: Backbone, written: Sequence[tuple[int, GenerationItem, Spec]], ctx: StepContext, attempt: int
) -> None:
    """Have the Solver answer each question on its source image; keep the specs with enough references."""
    asked = [(question, item.source.image) for _, item, spec in written for question, _ in spec.questions]
    requests = [r for i, (q, image) in enumerate(asked) for r in _framed(q, image, ctx, "reference", attempt, i)]
    samples = iter(model.solve(requests, TextSampling(ctx.config.solve.max_new_tokens, temperature=0.0)))
    for i, item, spec in written:
        questions = []
        for question, expected in spec.questions:
            answers = [next(samples) for _ in SCORING_FRAMINGS]
            labels = [canonical_label(answer.text, question) for answer in answers]
            reference = reference_label(vote(labels, ctx.seed("reference", i)))
            questions.append(SpecQuestion(question, expected, answers, labels, reference))
        kept = [(q.text, q.reference) for q in questions if q.reference is not None]
        if len(kept) >= MIN_KEPT:
            item.spec, item.questions = spec, questions
            item.quality = spec_quality(kept, spec.raw_count)


def _framed(question: str, image: Image, ctx: StepContext, *path: int | str) -> list[TextRequest]:
    """The question under every scoring framing. Answers are greedy, so that the seeds play no part."""
    return [TextRequest(frame(question, f), image, ctx.seed(*path, j)) for j, f in enumerate(SCORING_FRAMINGS)]


def draw(model: Backbone, items: Sequence[GenerationItem], ctx: StepContext) -> None:
    """Draw N_g candidates for every spec, as one batch."""
    specified = [(item, item.spec) for item in items if item.spec is not None]
    first = ctx.gather.before(len(specified))
    if not specified:
        return
    settings = ctx.config.generate
    requests = [
        ImageRequest(spec.prompt, ctx.seed("draw", i, j))
        for i, (_, spec) in enumerate(specified, start=first)
        for j in range(settings.candidates)
    ]
    samples = iter(model.generate(requests, ImageSampling("rollout", settings.temperature)))
    for item, _ in specified:
        item.candidates = [Candidate(next(samples)) for _ in range(settings.candidates)]


def judge(model: Backbone, items: Sequence[GenerationItem], ctx: StepContext) -> None:
    """Ask the kept questions on every candidate and have it captioned, in one batch; fidelity and contradiction."""
    candidates = [(item, c) for item in items for c in item.candidates]
    judged = [(c, q) for item, c in candidates for q in item.kept]
    first = ctx.gather.before(len(judged))
    if not candidates:
        return
    solve = ctx.config.solve
    requests = [
        r for i, (c, q) in enumerate(judged, start=first) for r in _framed(q.text, c.sample.image, ctx, "judge", i)
    ]
    answers = [TextSampling(solve.max_new_tokens, temperature=0.0)] * len(requests)
    requests += [
        TextRequest(CAPTION_PROMPT, c.sample.image, ctx.seed("caption", i)) for i, (_, c) in enumerate(candidates)
    ]
    captions = [TextSampling(solve.caption_max_new_tokens, temperature=0.0)] * len(candidates)
    samples = iter(model.solve(requests, [*answers, *captions]))
    for i, (c, q) in enumerate(judged, start=first):
        labels = [canonical_label(next(samples).text, q.text) for _ in SCORING_FRAMINGS]
        c.labels.append(labels)
        c.majorities.append(vote(labels, ctx.seed("judge", i)).majority)
    for item, c in candidates:
        c.caption = next(samples).text.strip()
        answered = [(q.text, m, str(q.reference)) for q, m in zip(item.kept, c.majorities, strict=True)]
        c.contradiction = contradiction(answered)
        c.fidelity = fidelity([same_answer(m, reference, text) for text, m, reference in answered])
    if ctx.config.generate.fidelity == "probability":
        _soften_fidelity(model, candidates)


def _soften_fidelity(model: Backbone, candidates: Sequence[tuple[GenerationItem, Candidate]]) -> None:
    """Replace majority fidelity by the Solver's probability of the reference answer on the candidate, averaged over
    the scoring framings. The reference's own sampled tokens are scored, so nothing is re-tokenised."""
    transplanted = [
        replace(sample, request=replace(sample.request, image=c.sample.image))
        for item, c in candidates
        for q in item.kept
        for sample in _reference_answers(q)
    ]
    scores = iter(model.token_logits(transplanted, Role.SOLVER))
    for item, c in candidates:
        probabilities = []
        for q in item.kept:
            logprobs = [float(next(scores).logprobs.sum()) for _ in q.samples]
            probabilities.append(sum(math.exp(min(logprob, 0.0)) for logprob in logprobs) / len(logprobs))
        c.fidelity = fidelity(probabilities)


def _reference_answers(question: SpecQuestion) -> list[TextSample]:
    """The answers on the source image; where one is not the reference, the tokens of one that is."""
    agreed = [label == question.reference for label in question.labels]
    reference = question.samples[agreed.index(True)]
    return [
        own if same else replace(reference, request=own.request)
        for own, same in zip(question.samples, agreed, strict=True)
    ]


def compare(model: Backbone, items: Sequence[GenerationItem]) -> None:
    """Set cycle consistency and diversity of every candidate, from the base model's embeddings."""
    specified = [(item, item.spec.prompt) for item in items if item.spec is not None]
    if not specified:
        return
    count = len(specified)
    candidates = [c for item, _ in specified for c in item.candidates]
    # Fetched as a whole: every score is a number of the host.
    texts = model.embed([*(prompt for _, prompt in specified), *(c.caption for c in candidates)]).cpu()
    by_spec = (count, -1, texts.shape[-1])
    captions = texts[count:].reshape(by_spec)
    images = model.embed([c.sample.image for c in candidates]).cpu().reshape(by_spec)
    for (item, _), prompt, said, drawn in zip(specified, texts[:count], captions, images, strict=True):
        for c, caption, image, distance in zip(item.candidates, said, drawn, diversity(drawn), strict=True):
            c.cycle, c.diversity = cycle_score(prompt, caption, image), distance


def reward_generator(model: Backbone, items: Sequence[GenerationItem], ctx: StepContext) -> None:
    """Set R_g of every candidate of all processes, and its regression weight or advantage in its group."""
    drawn = [item for item in items if item.spec is not None]
    without = ctx.variant.without_score
    groups = [[generation_reward(item.quality, c, without) for c in item.candidates] for item in drawn]
    groups = ctx.variant.rewards(groups, ctx.seed("control", "generator"))
    signals_of: Callable[[Sequence[float]], list[float]] = leave_one_out
    if uses_regression(model, ctx.config):
        signals_of = partial(regression_weights, tau=ctx.config.generate.tau)
    for item, rewards in zip(drawn, groups, strict=True):
        for c, reward, signal in zip(item.candidates, rewards, over_finite(signals_of, rewards), strict=True):
            c.reward, c.signal = reward, signal if math.isfinite(reward) else None
