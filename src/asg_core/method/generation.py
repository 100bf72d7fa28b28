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
from asg_core.config.seeding import derive_seed
from asg_core.data.image_pool import PoolImage
from asg_core.method.ablations import perturb_rewards
from asg_core.method.answers import canonical_label, same_answer, vote
from asg_core.method.generation_rewards import (
    CandidateScores,
    contradiction,
    fidelity,
    generation_reward,
    reference_label,
    spec_quality,
)
from asg_core.method.policy import leave_one_out, regression_weights
from asg_core.method.prompts import CAPTION_PROMPT, SCORING_FRAMINGS, SPEC_PROMPT, GateFailure, frame, parse_spec
from asg_core.method.records import Candidate, GenerationItem, SpecQuestion
from asg_core.method.similarity import cycle_score, diversity
from asg_core.training.distributed import Processes
from asg_core.training.gather import whole_generation_step

MAX_TRIES = 3
"""Spec attempts before an image is skipped and counted (METHOD, generation step 1)."""

MIN_KEPT = 2
"""Fewest questions with a reference that a spec needs."""


@torch.no_grad()
def generation_step(
    backbone: Backbone,
    images: Sequence[PoolImage],
    config: RunConfig,
    step: int,
    processes: Processes | None = None,
    first: int = 0,
) -> list[GenerationItem]:
    """Specify, draw and judge for one batch of images; fills every score, reward and learning signal.

    Images whose spec fails ``MAX_TRIES`` times come back with ``spec=None`` and no candidates.

    Args:
        images: this process's share of the step's images, perhaps none.
        step: 1-based number of the step; with the run seed it fixes every random draw.
        processes: of the run; None if there is one.
        first: place of ``images[0]`` among the step's images.

    Returns:
        the items of all processes, in the order of the step's images.
    """
    processes = processes or Processes()
    items = [GenerationItem(source) for source in images]
    if images:
        backbone.prefill([source.image for source in images], [Role.PROPOSER, Role.SOLVER])
    _specify(backbone, items, config, step, first)
    drawn = [item for item in items if item.spec is not None]
    judged = config.generate.candidates * sum(len(item.kept) for item in drawn)
    drawn_before, judged_before = processes.sums_before([len(drawn), judged])
    if drawn:
        _draw(backbone, drawn, config, step, drawn_before)
        _judge(backbone, drawn, config, step, judged_before)
        _compare(backbone, drawn)
    items = whole_generation_step(processes, items)
    _reward([item for item in items if item.spec is not None], backbone, config, step)
    return items


def uses_regression(backbone: Backbone, config: RunConfig) -> bool:
    """Whether the Generator update is reward-weighted regression (else clipped policy gradient on image tokens)."""
    if config.generate.update == "auto":
        return backbone.manifest.capabilities.image_loss == "flow"
    return config.generate.update == "regression"


def _specify(backbone: Backbone, items: Sequence[GenerationItem], config: RunConfig, step: int, first: int) -> None:
    for attempt in range(MAX_TRIES):
        pending = [(i, item) for i, item in enumerate(items, start=first) if item.spec is None]
        if not pending:
            return
        requests = [
            TextRequest(SPEC_PROMPT, item.source.image, derive_seed(config.seed, step, "spec", i, attempt))
            for i, item in pending
        ]
        samples = backbone.ask(requests, TextSampling(config.ask.spec_max_new_tokens, config.ask.temperature))
        parsed = []
        for (i, item), sample in zip(pending, samples, strict=True):
            item.tries = attempt + 1
            spec = parse_spec(sample.text)
            if not isinstance(spec, GateFailure) and len(spec.questions) >= MIN_KEPT:
                parsed.append((i, item, spec))
        answers = iter(
            _scoring_answers(
                backbone,
                [(item, question) for _, item, spec in parsed for question, _ in spec.questions],
                config,
                seed_path=(step, "reference", attempt),
            )
        )
        for i, item, spec in parsed:
            questions = []
            for question, expected in spec.questions:
                group = next(answers)
                labels = [canonical_label(s.text, question) for s in group]
                tally = vote(labels, derive_seed(config.seed, step, "reference", i))
                questions.append(SpecQuestion(question, expected, group, labels, reference_label(tally)))
            kept = [(q.text, q.reference) for q in questions if q.reference is not None]
            if len(kept) >= MIN_KEPT:
                item.spec, item.questions = spec, questions
                item.quality = spec_quality(kept, spec.raw_count)


def _scoring_answers(
    backbone: Backbone,
    asked: Sequence[tuple[GenerationItem, str]],
    config: RunConfig,
    seed_path: tuple[int | str, ...],
) -> list[list[TextSample]]:
    """Greedy answers to each question on the item's source image, one per scoring framing; seeds play no part."""
    if not asked:
        return []
    requests = [
        TextRequest(frame(question, framing), item.source.image, derive_seed(config.seed, *seed_path, i, j))
        for i, (item, question) in enumerate(asked)
        for j, framing in enumerate(SCORING_FRAMINGS)
    ]
    samples = iter(backbone.solve(requests, TextSampling(config.solve.max_new_tokens, temperature=0.0)))
    return [[next(samples) for _ in SCORING_FRAMINGS] for _ in asked]


def _draw(backbone: Backbone, items: Sequence[GenerationItem], config: RunConfig, step: int, earlier: int) -> None:
    n = config.generate.candidates
    requests = [
        ImageRequest(item.spec.prompt, derive_seed(config.seed, step, "draw", i, j))
        for i, item in enumerate(items, start=earlier)
        if item.spec is not None
        for j in range(n)
    ]
    samples = iter(backbone.generate(requests, ImageSampling("rollout", config.generate.temperature)))
    for item in items:
        item.candidates = [Candidate(next(samples)) for _ in range(n)]


def _judge(backbone: Backbone, items: Sequence[GenerationItem], config: RunConfig, step: int, earlier: int) -> None:
    """Ask the kept questions on every candidate and have it captioned, in one batch; fidelity and contradiction."""
    candidates = [c for item in items for c in item.candidates]
    judged = [(item, c, q) for item in items for c in item.candidates for q in item.kept]
    requests = [
        TextRequest(frame(q.text, framing), c.sample.image, derive_seed(config.seed, step, "judge", i, j))
        for i, (_, c, q) in enumerate(judged, start=earlier)
        for j, framing in enumerate(SCORING_FRAMINGS)
    ]
    answers = [TextSampling(config.solve.max_new_tokens, temperature=0.0)] * len(requests)
    requests += [
        TextRequest(CAPTION_PROMPT, c.sample.image, derive_seed(config.seed, step, "caption", i))
        for i, c in enumerate(candidates)
    ]
    captions = [TextSampling(config.solve.caption_max_new_tokens, temperature=0.0)] * len(candidates)
    samples = iter(backbone.solve(requests, [*answers, *captions]))
    for i, (_, c, q) in enumerate(judged, start=earlier):
        labels = [canonical_label(next(samples).text, q.text) for _ in SCORING_FRAMINGS]
        c.labels.append(labels)
        c.majorities.append(vote(labels, derive_seed(config.seed, step, "judge", i)).majority)
    for c in candidates:
        c.caption = next(samples).text.strip()
    for item in items:
        for c in item.candidates:
            answered = [(q.text, m, str(q.reference)) for q, m in zip(item.kept, c.majorities, strict=True)]
            c.contradiction = contradiction(answered)
            c.fidelity = fidelity([float(same_answer(m, reference, text)) for text, m, reference in answered])
    if config.generate.fidelity == "probability":
        _soften_fidelity(backbone, judged, items)


def _soften_fidelity(
    backbone: Backbone,
    judged: Sequence[tuple[GenerationItem, Candidate, SpecQuestion]],
    items: Sequence[GenerationItem],
) -> None:
    """Replace majority fidelity by the Solver's probability of the reference answer on the candidate, averaged over
    the scoring framings. The reference's own sampled tokens are scored, so nothing is re-tokenised."""
    transplanted: list[TextSample] = []
    for _, c, q in judged:
        agreeing = [s for s, label in zip(q.samples, q.labels, strict=True) if label == q.reference]
        for own, label in zip(q.samples, q.labels, strict=True):
            answer = own if label == q.reference else agreeing[0]
            transplanted.append(replace(answer, request=replace(own.request, image=c.sample.image)))
    scores = iter(backbone.token_logits(transplanted, Role.SOLVER))
    per_candidate: dict[int, list[float]] = {}
    for _, c, q in judged:
        total = [float(next(scores).logprobs.sum()) for _ in q.samples]
        probabilities = [1.0 if logprob > 0.0 else math.exp(logprob) for logprob in total]
        per_candidate.setdefault(id(c), []).append(sum(probabilities) / len(probabilities))
    for item in items:
        for c in item.candidates:
            c.fidelity = fidelity(per_candidate[id(c)])


def _compare(backbone: Backbone, items: Sequence[GenerationItem]) -> None:
    """Cycle consistency and diversity of every candidate, from the base model's embeddings."""
    candidates = [c for item in items for c in item.candidates]
    written = [item.spec.prompt for item in items if item.spec is not None]
    # Fetched as a whole: every score is a number of the host.
    texts = backbone.embed([*written, *(c.caption for c in candidates)]).cpu()
    prompts, captions = texts[: len(written)], texts[len(written) :]
    images = backbone.embed([c.sample.image for c in candidates]).cpu()
    start = 0
    for row, item in enumerate(items):
        stop = start + len(item.candidates)
        spread = diversity(images[start:stop])
        for offset, c in enumerate(item.candidates):
            c.cycle = cycle_score(prompts[row], captions[start + offset], images[start + offset])
            c.diversity = spread[offset]
        start = stop


def _reward(items: Sequence[GenerationItem], backbone: Backbone, config: RunConfig, step: int) -> None:
    without = config.control.removeprefix("no_") if config.control.startswith("no_") else None
    groups = [
        [
            generation_reward(item.quality, CandidateScores(c.fidelity, c.cycle, c.diversity, c.contradiction), without)
            for c in item.candidates
        ]
        for item in items
    ]
    groups = perturb_rewards(groups, config.control, derive_seed(config.seed, step, "control", "generator"))
    regression = uses_regression(backbone, config)
    for item, rewards in zip(items, groups, strict=True):
        for c, reward in zip(item.candidates, rewards, strict=True):
            c.reward = reward
        usable = [c for c in item.candidates if math.isfinite(c.reward)]
        finite = [c.reward for c in usable]
        signals = regression_weights(finite, config.generate.tau) if regression else leave_one_out(finite)
        for c, signal in zip(usable, signals, strict=True):
            c.signal = signal
