"""Updates of the text roles on the embedded backbone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from accelerate import Accelerator

from asg_core import RunConfig
from asg_core.backbones.interface import Backbone, Role, TextSample, TokenLogits
from asg_core.backbones.proxy import BackboneProxy
from asg_core.data.image_pool import PoolImage
from asg_core.errors import TrainingStopped
from asg_core.method.context import StepContext
from asg_core.method.losses import AdaptiveKl, EmaBaseline, clipped_policy_terms
from asg_core.method.prompts import CANONICAL_FRAMING, frame
from asg_core.method.replay import NoiseFloor
from asg_core.method.token_entropy import RollingPercentile
from asg_core.method.understanding import understanding_step
from asg_core.method.updates import Group, Learner, UpdateReport, proposer_groups, solver_groups, update_text_role
from asg_core.training.optimizer import RoleOptimizer

Lists = list[list[tuple[TextSample, float]]]


class Listening(BackboneProxy):
    """Remembers what it scored, call by call."""

    def __init__(self, inner: Backbone) -> None:
        super().__init__(inner)
        self.calls: list[list[TokenLogits]] = []

    def token_logits(self, samples: Any, role: Role | None, **wanted: bool) -> list[TokenLogits]:
        self.calls.append(self.inner.token_logits(samples, role, **wanted))
        return self.calls[-1]


def update(
    backbone: Backbone,
    role: Role,
    groups: Lists,
    config: RunConfig,
    lr: float = 1e-3,
    beta: AdaptiveKl | None = None,
    floor: NoiseFloor | None = None,
) -> UpdateReport:
    optimizer = RoleOptimizer(backbone.trainable(role), lr, 0.01, 1.0, Accelerator(cpu=True))
    learner = Learner(role, optimizer, beta or AdaptiveKl(0.01), floor or NoiseFloor(0.0))
    return update_text_role(backbone, [Group(group) for group in groups], learner, StepContext(config, 1))


def rounded(groups: Lists) -> Lists:
    """The samples as if sampling had rounded: one token in ten, from the first on, is beyond the clip."""
    noise = (x for _ in range(10**6) for x in (0.3, *[-0.02] * 9))
    return [[(replace(s, logprobs=tuple(x + next(noise) for x in s.logprobs)), a) for s, a in g] for g in groups]


def inner(config: RunConfig, steps: int, micro_batch: int = 0) -> RunConfig:
    policy = config.policy.model_copy(update={"inner_steps": steps})
    optimizer = config.optimizer.model_copy(update={"micro_batch": micro_batch})
    return config.model_copy(update={"policy": policy, "optimizer": optimizer})


@pytest.fixture
def groups(
    recorded: Callable[..., Any], tiny: Backbone, images: list[PoolImage], config: RunConfig
) -> dict[Role, Lists]:
    ctx = StepContext(config, 1)
    items = recorded("understanding", lambda: understanding_step(tiny, images, ctx, RollingPercentile(), EmaBaseline()))
    made = {Role.PROPOSER: proposer_groups(items), Role.SOLVER: solver_groups(items)}
    found = {role: [list(group.samples) for group in made[role]] for role in made}
    assert all(any(a for _, a in group) for role in found for group in found[role][:1])
    return found


@pytest.mark.parametrize("role", [Role.PROPOSER, Role.SOLVER])
def test_a_step_on_one_role_leaves_every_other_tensor_bit_identical(
    role: Role,
    tiny: Backbone,
    groups: dict[Role, Lists],
    config: RunConfig,
    watch: Callable[[Backbone], Any],
) -> None:
    watched = watch(tiny)
    report = update(tiny, role, groups[role], config)
    assert report.step.applied
    assert watched.moved() == {role}


def test_zero_variance_groups_change_nothing_even_with_a_kl_term(
    tiny: Backbone, groups: dict[Role, Lists], config: RunConfig, watch: Callable[[Backbone], Any]
) -> None:
    update(tiny, Role.SOLVER, groups[Role.SOLVER], config, lr=1e-2)
    watched = watch(tiny)
    flat = [[(sample, 0.0) for sample, _ in group] for group in groups[Role.SOLVER]]
    beta = AdaptiveKl(5.0)
    report = update(tiny, Role.SOLVER, flat, config, beta=beta)
    assert not report.step.applied
    assert report.zero_variance_share == 1.0
    assert beta.beta == 5.0
    assert watched.moved() == set()


def test_rounding_of_the_stored_log_probs_clips_nothing_and_changes_no_bit(
    tiny: Backbone, groups: dict[Role, Lists], config: RunConfig, watch: Callable[[Backbone], Any]
) -> None:
    """With rho = 1 the loss is minus the token-weighted mean advantage, whatever the model; the noise is reported."""
    group = groups[Role.SOLVER][:4]
    tokens = sum(len(s.token_ids) for g in group for s, _ in g)
    expected = -sum(a * len(s.token_ids) for g in group for s, a in g) / tokens
    watched, moved = watch(tiny), []
    for sampled in (group, rounded(group)):
        watched.reset()
        report = update(tiny, Role.SOLVER, sampled, config, floor=NoiseFloor(1.0))
        assert report.step.loss == pytest.approx(expected, abs=1e-6)
        assert report.kl == pytest.approx(0.0, abs=1e-6)
        moved.append({name: weight.detach().clone() for name, weight in tiny.trainable(Role.SOLVER).items()})
    assert all(torch.equal(moved[0][name], moved[1][name]) for name in moved[0])
    assert report.drift is not None
    assert report.drift.beyond_clip == pytest.approx(0.1, abs=1 / tokens)
    assert report.drift.log_ratio == pytest.approx(0.3 * 0.1 + 0.02 * 0.9, abs=0.3 / tokens)


@pytest.mark.parametrize("micro_batch", [0, 1])
def test_later_inner_steps_are_clipped_against_the_first_pass(
    micro_batch: int, tiny: Backbone, groups: dict[Role, Lists], config: RunConfig
) -> None:
    """The loss of the second step by hand, from what the two passes scored, batch by batch."""
    sampled = rounded(groups[Role.SOLVER][:3])
    listening = Listening(tiny)
    report = update(
        listening, Role.SOLVER, sampled, inner(config, 2, micro_batch), 0.02, AdaptiveKl(0.0), NoiseFloor(0.01)
    )
    half = len(listening.calls) // 2
    assert half == (3 if micro_batch else 1)
    first, second = (
        [score.logprobs.detach() for call in calls for score in call]
        for calls in (listening.calls[:half], listening.calls[half:])
    )
    advantages = [a for g in sampled for _, a in g]
    terms = torch.cat([
        clipped_policy_terms(new, old, a, config.policy.clip)
        for new, old, a in zip(second, first, advantages, strict=True)
    ])  # fmt: skip
    assert report.step.loss == pytest.approx(float(terms.mean()), abs=1e-6)
    ratios = torch.exp(torch.cat(second) - torch.cat(first))
    assert 0.05 < float(((ratios - 1).abs() > config.policy.clip).float().mean()) < 0.95


def test_the_floor_of_rounding_is_measured_by_one_more_scoring_and_only_once(
    tiny: Backbone, groups: dict[Role, Lists], config: RunConfig
) -> None:
    listening, floor = Listening(tiny), NoiseFloor()
    update(listening, Role.SOLVER, groups[Role.SOLVER], inner(config, 2), floor=floor)
    passes = [bool(call[0].logprobs.requires_grad) for call in listening.calls]
    assert passes == [True, False, True]
    measured = floor.nats
    assert measured is not None
    assert 0 <= measured < 1e-9
    update(listening, Role.PROPOSER, groups[Role.PROPOSER], inner(config, 2), floor=floor)
    assert len(listening.calls) == 3 + 2
    assert floor.nats == measured


def test_log_probs_under_one_canonical_prompt_are_refused(
    tiny: Backbone, groups: dict[Role, Lists], config: RunConfig
) -> None:
    """METHOD's last table: the released code scores every answer under one prompt; the ratio check catches that."""
    wrong = [
        [
            (replace(s, request=replace(s.request, prompt=frame("what is this?", CANONICAL_FRAMING))), a)
            for s, a in group
        ]
        for group in groups[Role.SOLVER]
    ]
    with pytest.raises(TrainingStopped, match="replayed log-probs differ"):
        update(tiny, Role.SOLVER, wrong, config)


@pytest.mark.parametrize("micro_batch", [1, 3])
def test_gradient_accumulation_equals_one_batch(
    micro_batch: int,
    tiny: Backbone,
    groups: dict[Role, Lists],
    config: RunConfig,
    watch: Callable[[Backbone], Any],
) -> None:
    watched = watch(tiny)
    results = []
    for size in (0, micro_batch):
        watched.reset()
        split = config.model_copy(update={"optimizer": config.optimizer.model_copy(update={"micro_batch": size})})
        report = update(tiny, Role.SOLVER, groups[Role.SOLVER], split)
        results.append((report, {k: v.detach().clone() for k, v in tiny.trainable(Role.SOLVER).items()}))
    (one, whole), (many, parts) = results
    assert many.step.loss == pytest.approx(one.step.loss, abs=1e-6)
    assert many.step.grad_norm == pytest.approx(one.step.grad_norm, rel=1e-4)
    assert max(float((whole[k] - parts[k]).abs().max()) for k in whole) < 2e-5


def test_samples_with_non_finite_log_probs_are_dropped_and_counted(
    tiny: Backbone, groups: dict[Role, Lists], config: RunConfig
) -> None:
    group = groups[Role.SOLVER][0]
    sample, advantage = group[0]
    broken = [(replace(sample, logprobs=(float("nan"), *sample.logprobs[1:])), advantage), *group[1:]]
    clean = update(tiny, Role.SOLVER, [group[1:]], config, lr=1e-9)
    report = update(tiny, Role.SOLVER, [broken], config, lr=1e-9)
    assert (clean.dropped, report.dropped) == (0, 1)
    assert report.step.loss == pytest.approx(clean.step.loss, abs=1e-5)


def test_rewarded_answers_become_more_likely_and_kl_moves_beta(
    tiny: Backbone, groups: dict[Role, Lists], config: RunConfig
) -> None:
    group = groups[Role.SOLVER][0]
    good = [s for s, a in group if a > 0]

    def likelihood() -> float:
        with torch.no_grad():
            return float(sum(score.logprobs.sum() for score in tiny.token_logits(good, Role.SOLVER)))

    before = likelihood()
    beta = AdaptiveKl(0.01)
    several = config.model_copy(update={"policy": config.policy.model_copy(update={"inner_steps": 4, "clip": 0.9})})
    report = update(tiny, Role.SOLVER, [group], several, lr=1e-2, beta=beta)
    assert likelihood() > before
    assert report.kl is not None
    assert report.kl > 0.02
    assert beta.beta > 0.01
