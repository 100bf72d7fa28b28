"""The generation step on the embedded backbone, and the rows of METHOD's last table that concern it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from asg_core import RunConfig
from asg_core.backbones.interface import Backbone, Role, TextSample
from asg_core.backbones.proxy import BackboneProxy
from asg_core.data.image_pool import PoolImage
from asg_core.method.context import StepContext
from asg_core.method.generation import generation_step
from asg_core.method.losses import leave_one_out, regression_weights
from asg_core.method.prompts import SCORING_FRAMINGS
from asg_core.method.records import GenerationItem
from asg_core.method.rewards import cycle_score, diversity, generation_reward


def test_references_are_what_two_thirds_of_the_solver_answers_on_the_source_say(items: list[GenerationItem]) -> None:
    for item in items:
        if item.spec is None:
            continue
        assert len(item.kept) >= 2
        for q in item.questions:
            share = max(q.labels.count(x) for x in q.labels) / 3
            assert (q.reference is None) == (share < 2 / 3 or q.labels.count("other") >= 2)
            if q.reference is not None:
                assert q.labels.count(q.reference) >= 2


def test_rewards_follow_from_the_recorded_scores(items: list[GenerationItem], tiny: Backbone) -> None:
    for item in (i for i in items if i.candidates):
        kept = item.kept
        embeddings = tiny.embed([c.sample.image for c in item.candidates])
        texts = tiny.embed([str(item.spec and item.spec.prompt), *(c.caption for c in item.candidates)])
        for j, c in enumerate(item.candidates):
            matches = [m == q.reference for q, m in zip(kept, c.majorities, strict=True)]
            assert c.fidelity == pytest.approx(sum(matches) / len(matches))
            assert c.cycle == pytest.approx(cycle_score(texts[0], texts[1 + j], embeddings[j]), abs=1e-5)
            assert c.diversity == pytest.approx(diversity(embeddings)[j], abs=1e-5)
            assert c.reward == pytest.approx(generation_reward(item.quality, c))
        assert [c.signal for c in item.candidates] == leave_one_out([c.reward for c in item.candidates])


class FirstFramingDiffers(BackboneProxy):
    """Answers as ``inner``, but under the first scoring framing with a word that no other answer is."""

    def solve(self, requests: Any, sampling: Any, role: Role | None = Role.SOLVER) -> list[TextSample]:
        start = SCORING_FRAMINGS[0].split("{question}")[0]
        return [
            replace(s, text="zebra", pieces=("zebra",)) if s.request.prompt.startswith(start) else s
            for s in self.inner.solve(requests, sampling, role)
        ]


def test_drawings_are_judged_by_the_majority_of_the_scoring_framings(
    tiny: Backbone, images: list[PoolImage], config: RunConfig
) -> None:
    found = generation_step(FirstFramingDiffers(tiny), images[:3], StepContext(config, 4))
    candidates = [c for item in found for c in item.candidates]
    votes = [vote for c in candidates for vote in zip(c.labels, c.majorities, strict=True)]
    agreed = [(labels, majority) for labels, majority in votes if labels[1] == labels[2] != labels[0]]
    assert agreed
    assert all(majority == labels[1] for labels, majority in agreed)


def test_candidates_of_a_prompt_have_different_seeds_and_pictures(items: list[GenerationItem]) -> None:
    for item in (i for i in items if i.candidates):
        assert len({c.sample.request.seed for c in item.candidates}) == len(item.candidates)
        assert {c.sample.request.prompt for c in item.candidates} == {item.spec.prompt if item.spec else ""}


def test_soft_fidelity_is_the_probability_of_the_reference_and_differs_between_candidates(
    tiny: Backbone, images: list[PoolImage], config: RunConfig
) -> None:
    soft = config.model_copy(update={"generate": config.generate.model_copy(update={"fidelity": "probability"})})
    found = generation_step(tiny, images, StepContext(soft, 4))
    values = [c.fidelity for item in found for c in item.candidates]
    assert all(0.0 <= v <= 1.0 for v in values)
    assert len(set(values)) > len(values) // 2


def test_flow_weights_are_the_softmax_of_the_rewards(
    tiny_flow: Backbone, images: list[PoolImage], config: RunConfig
) -> None:
    for item in generation_step(tiny_flow, images[:3], StepContext(config, 4)):
        assert [c.signal for c in item.candidates] == regression_weights([c.reward for c in item.candidates], 0.2)


def test_an_image_without_a_usable_spec_is_skipped_after_three_tries(
    tiny: Backbone, images: list[PoolImage], config: RunConfig
) -> None:
    short = config.model_copy(update={"ask": config.ask.model_copy(update={"spec_max_new_tokens": 2})})
    found = generation_step(tiny, images[:2], StepContext(short, 4))
    assert [(i.tries, i.spec, i.candidates) for i in found] == [(3, None, []), (3, None, [])]


def test_scoring_leaves_every_adapter_as_it_was(
    tiny: Backbone, images: list[PoolImage], config: RunConfig, watch: Callable[[Backbone], Any]
) -> None:
    watched = watch(tiny)
    generation_step(tiny, images, StepContext(config, 4))
    assert watched.moved() == set()
