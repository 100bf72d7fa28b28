"""Updates of the text roles on the embedded backbone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from accelerate import Accelerator

from asg_core import RunConfig
from asg_core.entropy import RollingPercentile
from asg_core.errors import TrainingStopped
from asg_core.images import PoolImage
from asg_core.optimiser import RoleOptimiser
from asg_core.policy import AdaptiveKl, EmaBaseline
from asg_core.prompts import CANONICAL_FRAMING, frame
from asg_core.roles import Backbone, Role, TextSample
from asg_core.steps.understanding import understanding_step
from asg_core.steps.update import UpdateReport, proposer_groups, solver_groups, update_text_role

Groups = list[list[tuple[TextSample, float]]]


def update(
    backbone: Backbone, role: Role, groups: Groups, config: RunConfig, lr: float = 1e-3, beta: AdaptiveKl | None = None
) -> UpdateReport:
    optimiser = RoleOptimiser(backbone.trainable(role), lr, 0.01, 1.0, Accelerator(cpu=True))
    return update_text_role(backbone, role, groups, optimiser, beta or AdaptiveKl(0.01), config)


@pytest.fixture
def groups(tiny: Backbone, images: list[PoolImage], config: RunConfig) -> dict[Role, Groups]:
    items = understanding_step(tiny, images, config, 1, RollingPercentile(), EmaBaseline())
    found = {Role.PROPOSER: proposer_groups(items), Role.SOLVER: solver_groups(items)}
    assert all(any(a for _, a in group) for role in found for group in found[role][:1])
    return found


@pytest.mark.parametrize("role", [Role.PROPOSER, Role.SOLVER])
def test_a_step_on_one_role_leaves_every_other_tensor_bit_identical(
    role: Role,
    tiny: Backbone,
    groups: dict[Role, Groups],
    config: RunConfig,
    watch: Callable[[Backbone], Any],
) -> None:
    watched = watch(tiny)
    report = update(tiny, role, groups[role], config)
    assert report.step.applied
    assert watched.moved() == {role}


def test_zero_variance_groups_change_nothing_even_with_a_kl_term(
    tiny: Backbone, groups: dict[Role, Groups], config: RunConfig, watch: Callable[[Backbone], Any]
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


def test_the_ratio_is_one_at_the_first_inner_step(
    tiny: Backbone, groups: dict[Role, Groups], config: RunConfig
) -> None:
    """With rho = 1 and equal weights the loss is minus the token-weighted mean advantage, whatever the model."""
    group = groups[Role.SOLVER][:4]
    tokens = sum(len(s.token_ids) for g in group for s, _ in g)
    expected = -sum(a * len(s.token_ids) for g in group for s, a in g) / tokens
    report = update(tiny, Role.SOLVER, group, config)
    assert report.step.loss == pytest.approx(expected, abs=1e-4)
    assert report.kl == pytest.approx(0.0, abs=1e-6)


def test_log_probs_under_one_canonical_prompt_are_refused(
    tiny: Backbone, groups: dict[Role, Groups], config: RunConfig
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
    groups: dict[Role, Groups],
    config: RunConfig,
    watch: Callable[[Backbone], Any],
) -> None:
    watched = watch(tiny)
    results = []
    for size in (0, micro_batch):
        watched.reset()
        split = config.model_copy(update={"optimiser": config.optimiser.model_copy(update={"micro_batch": size})})
        report = update(tiny, Role.SOLVER, groups[Role.SOLVER], split)
        results.append((report, {k: v.detach().clone() for k, v in tiny.trainable(Role.SOLVER).items()}))
    (one, whole), (many, parts) = results
    assert many.step.loss == pytest.approx(one.step.loss, abs=1e-6)
    assert many.step.grad_norm == pytest.approx(one.step.grad_norm, rel=1e-4)
    assert max(float((whole[k] - parts[k]).abs().max()) for k in whole) < 2e-5


def test_samples_with_non_finite_log_probs_are_dropped_and_counted(
    tiny: Backbone, groups: dict[Role, Groups], config: RunConfig
) -> None:
    group = groups[Role.SOLVER][0]
    sample, advantage = group[0]
    broken = [(replace(sample, logprobs=(float("nan"), *sample.logprobs[1:])), advantage), *group[1:]]
    clean = update(tiny, Role.SOLVER, [group[1:]], config, lr=1e-9)
    report = update(tiny, Role.SOLVER, [broken], config, lr=1e-9)
    assert (clean.dropped, report.dropped) == (0, 1)
    assert report.step.loss == pytest.approx(clean.step.loss, abs=1e-5)


def test_rewarded_answers_become_more_likely_and_kl_moves_beta(
    tiny: Backbone, groups: dict[Role, Groups], config: RunConfig
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
