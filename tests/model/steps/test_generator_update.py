"""The update of the Generator on the embedded backbone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from PIL import Image

from asg_core import RunConfig
from asg_core.backbones.interface import Backbone, GenerationLoss, Role
from asg_core.backbones.proxy import BackboneProxy
from asg_core.data.image_pool import PoolImage
from asg_core.errors import TrainingStopped
from asg_core.method.context import StepContext
from asg_core.method.generation import generation_step
from asg_core.method.generator_updates import update_generator
from asg_core.method.losses import clipped_policy_terms
from asg_core.method.records import GenerationItem
from asg_core.method.replay import NoiseFloor
from asg_core.method.updates import Learner
from asg_core.training.optimizer import RoleOptimizer

from .conftest import Drawn


class Listening(BackboneProxy):
    """Remembers the losses of drawings, call by call."""

    def __init__(self, inner: Backbone) -> None:
        super().__init__(inner)
        self.calls: list[GenerationLoss] = []

    def generation_loss(self, samples: Any, noise_seeds: Any) -> GenerationLoss:
        self.calls.append(self.inner.generation_loss(samples, noise_seeds))
        return self.calls[-1]


def inner(config: RunConfig, steps: int) -> RunConfig:
    policy = config.policy.model_copy(update={"inner_steps": steps})
    generate = config.generate.model_copy(update={"penalty_weight": 0.0})
    return config.model_copy(update={"policy": policy, "generate": generate})


def optimizer(backbone: Backbone, lr: float = 1e-3) -> RoleOptimizer:
    return RoleOptimizer(backbone.trainable(Role.GENERATOR), lr, 0.01, 1.0, Accelerator(cpu=True))


def learner(backbone: Backbone, lr: float = 1e-3, floor: NoiseFloor | None = None) -> Learner:
    return Learner(Role.GENERATOR, optimizer(backbone, lr), floor=floor or NoiseFloor(0.0))


@pytest.mark.parametrize("name", ["tiny", "tiny_flow"])
def test_only_the_generator_moves(
    name: str,
    request: pytest.FixtureRequest,
    drawn: Drawn,
    config: RunConfig,
    watch: Callable[[Backbone], Any],
) -> None:
    backbone: Backbone = request.getfixturevalue(name)
    found = drawn(backbone)
    watched = watch(backbone)
    report = update_generator(backbone, found, learner(backbone), StepContext(config, 4))
    assert report.step.applied
    assert report.step.grad_norm is not None
    assert report.step.grad_norm > 0
    assert watched.moved() == {Role.GENERATOR}


@pytest.mark.parametrize("name", ["tiny", "tiny_flow"])
def test_the_update_learns_from_the_candidates_and_never_sees_the_source_image(
    name: str,
    request: pytest.FixtureRequest,
    drawn: Drawn,
    config: RunConfig,
    watch: Callable[[Backbone], Any],
) -> None:
    """METHOD's last table, first row: the released code regresses on the real source image."""
    backbone: Backbone = request.getfixturevalue(name)
    found = drawn(backbone)
    weights = []
    watched = watch(backbone)
    for colour in ("black", "white"):
        watched.reset()
        for item in found:
            item.source = PoolImage(item.source.path, Image.new("RGB", (32, 32), colour))
        update_generator(backbone, found, learner(backbone), StepContext(config, 4))
        weights.append({k: v.detach().clone() for k, v in backbone.trainable(Role.GENERATOR).items()})
    assert all(torch.equal(weights[0][k], weights[1][k]) for k in weights[0])
    assert watched.moved() == {Role.GENERATOR}


@pytest.mark.parametrize("name", ["tiny", "tiny_flow"])
def test_equal_rewards_change_nothing_exactly(
    name: str,
    request: pytest.FixtureRequest,
    drawn: Drawn,
    config: RunConfig,
    watch: Callable[[Backbone], Any],
) -> None:
    backbone: Backbone = request.getfixturevalue(name)
    found = drawn(backbone)
    for item in found:
        for c in item.candidates:
            c.reward = 0.5
            c.signal = 0.0
    watched = watch(backbone)
    adam = optimizer(backbone)
    report = update_generator(backbone, found, Learner(Role.GENERATOR, adam), StepContext(config, 4))
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
    update_generator(tiny, [item], learner(tiny, 1e-4), StepContext(config, 4))
    change = likelihood() - before
    assert change[0] > 0
    assert change[0] > change[1:].max()


def test_later_inner_steps_of_image_tokens_are_clipped_against_the_first_pass(
    tiny: Backbone, items: list[GenerationItem], config: RunConfig
) -> None:
    """The loss of the second step by hand; what was stored while sampling, here with rounding, has no part in it."""
    item = next(i for i in items if i.candidates)
    for c, signal in zip(item.candidates, (1.0, -0.5, -0.5), strict=True):
        assert c.sample.token_logprobs is not None
        noise = torch.tensor([0.3, *[-0.02] * 15])
        c.sample, c.signal = replace(c.sample, token_logprobs=c.sample.token_logprobs + noise), signal
    listening, floor = Listening(tiny), NoiseFloor()
    floor.nats = 1.0
    report = update_generator(listening, [item], learner(tiny, 5e-3, floor=floor), StepContext(inner(config, 2), 4))
    first, second = (call.token_logprobs for call in listening.calls)
    assert first is not None
    assert second is not None
    terms = [
        clipped_policy_terms(new, old, c.signal or 0.0, config.policy.clip).mean()
        for new, old, c in zip(second.detach(), first.detach(), item.candidates, strict=True)
    ]
    assert report.step.loss == pytest.approx(float(torch.stack(terms).mean()), abs=1e-6)
    ratios = torch.exp(second - first)
    assert 0.05 < float(((ratios - 1).abs() > config.policy.clip).float().mean()) < 0.95
    assert report.drift is not None
    assert report.drift.beyond_clip == pytest.approx(1 / 16)


def test_the_floor_of_image_tokens_is_measured_by_one_more_scoring_and_only_once(
    tiny: Backbone, items: list[GenerationItem], config: RunConfig
) -> None:
    listening, floor = Listening(tiny), NoiseFloor()
    for calls in (3, 3 + 2):
        update_generator(listening, items, learner(tiny, 1e-9, floor=floor), StepContext(inner(config, 2), 4))
        assert len(listening.calls) == calls
    assert floor.nats is not None
    assert floor.nats < 1e-9


@pytest.mark.parametrize("update", ["policy_gradient", "regression"])
def test_drawings_scored_by_another_policy_stop_the_run_before_anything_moves(
    update: str, tiny: Backbone, items: list[GenerationItem], config: RunConfig, watch: Callable[[Backbone], Any]
) -> None:
    """The adapter moves between drawing and scoring, as if it were off or another role's in one of the two."""
    config = config.model_copy(update={"generate": config.generate.model_copy(update={"update": update})})
    ctx = StepContext(config, 4)
    assert update_generator(tiny, items, learner(tiny, 1e-9, NoiseFloor()), ctx).drift is not None
    with torch.no_grad():
        for weight in tiny.trainable(Role.GENERATOR).values():
            weight += 0.03
    drawn = [c.sample for item in items for c in item.candidates]
    with torch.no_grad():
        assert float(tiny.generation_loss(drawn, [0] * len(drawn)).penalty.mean()) > 0.05
    watched = watch(tiny)
    with pytest.raises(TrainingStopped, match=r"replayed log-probs differ.*generator"):
        update_generator(tiny, items, learner(tiny, floor=NoiseFloor()), ctx)
    assert watched.moved() == set()


def test_regression_takes_one_step_whatever_the_inner_steps(
    tiny_flow: Backbone, images: list[PoolImage], config: RunConfig
) -> None:
    found = generation_step(tiny_flow, images[:3], StepContext(config, 4))
    listening = Listening(tiny_flow)
    report = update_generator(listening, found, learner(tiny_flow), StepContext(inner(config, 3), 4))
    assert report.step.applied
    assert len(listening.calls) == 1
    assert report.drift is None


def test_candidates_with_non_finite_scores_are_left_out_and_counted(
    tiny: Backbone, items: list[GenerationItem], config: RunConfig
) -> None:
    item = next(i for i in items if i.candidates)
    item.candidates[0].signal = None
    item.candidates[1].signal, item.candidates[2].signal = 1.0, -1.0
    report = update_generator(tiny, [item], learner(tiny), StepContext(config, 4))
    assert report.dropped == 1
    assert report.step.applied
