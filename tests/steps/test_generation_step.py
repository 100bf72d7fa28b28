"""The generation step on the embedded backbone, and the rows of METHOD's last table that concern it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from PIL import Image

from asg_core import RunConfig
from asg_core.images import PoolImage
from asg_core.optimiser import RoleOptimiser
from asg_core.policy import leave_one_out, regression_weights
from asg_core.rewards.generation import CandidateScores, generation_reward
from asg_core.roles import Backbone, Role
from asg_core.similarity import cycle_score, diversity
from asg_core.steps.generation import generation_step
from asg_core.steps.generator_update import update_generator
from asg_core.steps.records import GenerationItem


def optimiser(backbone: Backbone, lr: float = 1e-3) -> RoleOptimiser:
    return RoleOptimiser(backbone.trainable(Role.GENERATOR), lr, 0.01, 1.0, Accelerator(cpu=True))


@pytest.fixture
def items(tiny: Backbone, images: list[PoolImage], config: RunConfig) -> list[GenerationItem]:
    found = generation_step(tiny, images, config, 4)
    assert sum(bool(item.candidates) for item in found) >= 3
    return found


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
            scores = CandidateScores(c.fidelity, c.cycle, c.diversity, c.contradiction)
            assert c.reward == pytest.approx(generation_reward(item.quality, scores))
        assert [c.signal for c in item.candidates] == leave_one_out([c.reward for c in item.candidates])


def test_candidates_of_a_prompt_have_different_seeds_and_pictures(items: list[GenerationItem]) -> None:
    for item in (i for i in items if i.candidates):
        assert len({c.sample.request.seed for c in item.candidates}) == len(item.candidates)
        assert {c.sample.request.prompt for c in item.candidates} == {item.spec.prompt if item.spec else ""}


def test_soft_fidelity_is_the_probability_of_the_reference_and_differs_between_candidates(
    tiny: Backbone, images: list[PoolImage], config: RunConfig
) -> None:
    soft = config.model_copy(update={"generate": config.generate.model_copy(update={"fidelity": "probability"})})
    found = generation_step(tiny, images, soft, 4)
    values = [c.fidelity for item in found for c in item.candidates]
    assert all(0.0 <= v <= 1.0 for v in values)
    assert len(set(values)) > len(values) // 2


def test_flow_weights_are_the_softmax_of_the_rewards(
    tiny_flow: Backbone, images: list[PoolImage], config: RunConfig
) -> None:
    for item in generation_step(tiny_flow, images[:3], config, 4):
        assert [c.signal for c in item.candidates] == regression_weights([c.reward for c in item.candidates], 0.2)


@pytest.mark.parametrize("name", ["tiny", "tiny_flow"])
def test_only_the_generator_moves(
    name: str,
    request: pytest.FixtureRequest,
    images: list[PoolImage],
    config: RunConfig,
    watch: Callable[[Backbone], Any],
) -> None:
    backbone: Backbone = request.getfixturevalue(name)
    found = generation_step(backbone, images, config, 4)
    watched = watch(backbone)
    report = update_generator(backbone, found, optimiser(backbone), config, 4)
    assert report.step.applied
    assert report.step.grad_norm is not None
    assert report.step.grad_norm > 0
    assert watched.moved() == {Role.GENERATOR}


@pytest.mark.parametrize("name", ["tiny", "tiny_flow"])
def test_the_update_learns_from_the_candidates_and_never_sees_the_source_image(
    name: str,
    request: pytest.FixtureRequest,
    images: list[PoolImage],
    config: RunConfig,
    watch: Callable[[Backbone], Any],
) -> None:
    """METHOD's last table, first row: the released code regresses on the real source image."""
    backbone: Backbone = request.getfixturevalue(name)
    found = generation_step(backbone, images, config, 4)
    weights = []
    watched = watch(backbone)
    for colour in ("black", "white"):
        watched.reset()
        for item in found:
            item.source = PoolImage(item.source.path, Image.new("RGB", (32, 32), colour))
        update_generator(backbone, found, optimiser(backbone), config, 4)
        weights.append({k: v.detach().clone() for k, v in backbone.trainable(Role.GENERATOR).items()})
    assert all(torch.equal(weights[0][k], weights[1][k]) for k in weights[0])
    assert watched.moved() == {Role.GENERATOR}


@pytest.mark.parametrize("name", ["tiny", "tiny_flow"])
def test_equal_rewards_change_nothing_exactly(
    name: str,
    request: pytest.FixtureRequest,
    images: list[PoolImage],
    config: RunConfig,
    watch: Callable[[Backbone], Any],
) -> None:
    backbone: Backbone = request.getfixturevalue(name)
    found = generation_step(backbone, images, config, 4)
    for item in found:
        for c in item.candidates:
            c.reward = 0.5
            c.signal = 0.0
    watched = watch(backbone)
    adam = optimiser(backbone)
    report = update_generator(backbone, found, adam, config, 4)
    assert not report.step.applied
    assert report.zero_variance_share == 1.0
    assert watched.moved() == set()
    assert adam.state() == {}


def test_a_rewarded_drawing_becomes_more_likely(tiny: Backbone, items: list[GenerationItem], config: RunConfig) -> None:
    item = next(i for i in items if i.candidates)
    for j, c in enumerate(item.candidates):
        c.signal = 1.0 if j == 0 else -0.5
    samples = [c.sample for c in item.candidates]

    def likelihood() -> torch.Tensor:
        with torch.no_grad():
            found = tiny.generation_loss(samples, [0] * len(samples)).token_logprobs
        assert found is not None
        return found.sum(1)

    before = likelihood()
    update_generator(tiny, [item], optimiser(tiny, 1e-4), config, 4)
    change = likelihood() - before
    assert change[0] > 0
    assert change[0] > change[1:].max()


def test_candidates_with_non_finite_scores_are_left_out_and_counted(
    tiny: Backbone, items: list[GenerationItem], config: RunConfig
) -> None:
    item = next(i for i in items if i.candidates)
    item.candidates[0].signal = None
    item.candidates[1].signal, item.candidates[2].signal = 1.0, -1.0
    report = update_generator(tiny, [item], optimiser(tiny), config, 4)
    assert report.dropped == 1
    assert report.step.applied


def test_an_image_without_a_usable_spec_is_skipped_after_three_tries(
    tiny: Backbone, images: list[PoolImage], config: RunConfig
) -> None:
    short = config.model_copy(update={"ask": config.ask.model_copy(update={"spec_max_new_tokens": 2})})
    found = generation_step(tiny, images[:2], short, 4)
    assert [(i.tries, i.spec, i.candidates) for i in found] == [(3, None, []), (3, None, [])]


def test_scoring_leaves_every_adapter_as_it_was(
    tiny: Backbone, images: list[PoolImage], config: RunConfig, watch: Callable[[Backbone], Any]
) -> None:
    watched = watch(tiny)
    generation_step(tiny, images, config, 4)
    assert watched.moved() == set()
