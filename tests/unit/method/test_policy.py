"""Advantages, clipped terms, KL and weights: hand-computed values, exact zeros, gradients by hand."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from asg_core.method.losses import (
    AdaptiveKl,
    EmaBaseline,
    clipped_policy_terms,
    k3,
    leave_one_out,
    regression_weights,
    z_score,
)
from devkit.sizes import fuzz

REWARDS = st.lists(st.floats(-1, 1), min_size=2, max_size=9)


def test_z_score_uses_the_population_std() -> None:
    assert z_score([1.0, 2.0, 3.0]) == pytest.approx([-math.sqrt(1.5), 0.0, math.sqrt(1.5)])
    assert z_score([0.0, 1.0]) == pytest.approx([-1.0, 1.0])


def test_leave_one_out_compares_with_the_others() -> None:
    assert leave_one_out([1.0, 2.0, 6.0]) == pytest.approx([1 - 4.0, 2 - 3.5, 6 - 1.5])
    rewards = [0.5236] * 4 + [-0.0806] * 2 + [-0.0496]
    others = [(sum(rewards) - reward) / 6 for reward in rewards]
    assert leave_one_out(rewards) == pytest.approx(
        [reward - other for reward, other in zip(rewards, others, strict=True)]
    )


@pytest.mark.parametrize("advantages", [z_score, leave_one_out, lambda rewards: regression_weights(rewards, 0.2)])
@pytest.mark.parametrize("rewards", [[0.1] * 3, [0.1] * 7, [-0.2] * 2, [0.7], [], [0.3, 0.3 + 1e-16, 0.1 + 0.2]])
def test_equal_rewards_give_zero(advantages: object, rewards: list[float]) -> None:
    assert advantages(rewards) == [0.0] * len(rewards)  # type: ignore[operator]


def test_rounding_noise_is_not_a_direction() -> None:
    noise = [0.5, 0.5 + 1e-12, 0.5 - 1e-12]
    assert z_score(noise) == leave_one_out(noise) == regression_weights(noise, 1e-9) == [0.0, 0.0, 0.0]
    assert z_score([0.5, 0.5 + 1e-7]) == [0.0, 0.0]


def test_leave_one_out_does_not_blow_up_nearly_unanimous_groups() -> None:
    assert max(map(abs, leave_one_out([0.5] * 6 + [0.501]))) < 0.0011


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_rewards_that_are_not_finite_are_refused(bad: float) -> None:
    baseline = EmaBaseline()
    for refuse in (z_score, leave_one_out, baseline.advantages, baseline.update, lambda r: regression_weights(r, 0.2)):
        with pytest.raises(ValueError, match="finite"):
            refuse([0.5, bad])
    assert baseline.value == 0.0


@fuzz(100)
@given(REWARDS)
def test_advantages_of_a_group_sum_to_zero(rewards: list[float]) -> None:
    assert math.fsum(z_score(rewards)) == pytest.approx(0.0, abs=1e-6)
    assert math.fsum(leave_one_out(rewards)) == pytest.approx(0.0, abs=1e-12)


@fuzz(100)
@given(REWARDS, st.floats(-1, 1))
def test_leave_one_out_ignores_a_constant(rewards: list[float], shift: float) -> None:
    moved = [reward + shift for reward in rewards]
    assert leave_one_out(moved) == pytest.approx(leave_one_out(rewards), abs=1e-8)


def test_ema_baseline_moves_after_its_use() -> None:
    baseline = EmaBaseline(value=0.5)
    assert baseline.advantages([1.0, 0.0]) == [0.5, -0.5]
    assert baseline.value == 0.5
    baseline.update([1.0, 0.8])
    assert baseline.value == pytest.approx(0.6 * 0.5 + 0.4 * 0.9)
    baseline.update([])
    assert baseline.value == pytest.approx(0.66)


def grads(new: list[float], old: list[float], advantage: float) -> tuple[list[float], list[float]]:
    """Loss terms and their gradients by the policy's log-probs, clip .2."""
    logprobs = torch.tensor(new, dtype=torch.float64, requires_grad=True)
    terms = clipped_policy_terms(logprobs, torch.tensor(old, dtype=torch.float64), advantage, 0.2)
    terms.sum().backward()
    assert logprobs.grad is not None
    return terms.tolist(), logprobs.grad.tolist()


def test_at_ratio_one_the_gradient_is_plain_reinforce() -> None:
    terms, gradient = grads([-1.0, -2.0, -0.1], [-1.0, -2.0, -0.1], 0.7)
    assert terms == pytest.approx([-0.7] * 3)
    assert gradient == pytest.approx([-0.7] * 3)


def test_the_ratio_is_to_the_sampling_policy_and_clipped() -> None:
    new = [math.log(1.5), math.log(1.1), math.log(0.5)]
    terms, gradient = grads(new, [0.0, 0.0, 0.0], 2.0)
    assert terms == pytest.approx([-2 * 1.2, -2 * 1.1, -2 * 0.5])
    assert gradient == pytest.approx([0.0, -2 * 1.1, -2 * 0.5])
    terms, gradient = grads(new, [0.0, 0.0, 0.0], -2.0)
    assert terms == pytest.approx([2 * 1.5, 2 * 1.1, 2 * 0.8])
    assert gradient == pytest.approx([2 * 1.5, 2 * 1.1, 0.0])


def test_no_advantage_means_no_gradient_exactly() -> None:
    terms, gradient = grads([-1.0, -2.0], [-1.5, -2.0], 0.0)
    assert [abs(value) for value in terms + gradient] == [0.0] * 4


def test_the_sampling_policy_gets_no_gradient() -> None:
    new = torch.tensor([-1.0], requires_grad=True)
    old = torch.tensor([-1.2], requires_grad=True)
    base = torch.tensor([-1.1], requires_grad=True)
    (clipped_policy_terms(new, old, 1.0, 0.2) + k3(new, base)).sum().backward()
    assert new.grad is not None
    assert old.grad is None
    assert base.grad is None


def test_k3_by_hand() -> None:
    values = k3(torch.tensor([-1.0, -1.0, -2.0]), torch.tensor([-1.0, -2.0, -1.0]))
    assert values.tolist() == pytest.approx([0.0, math.exp(-1), math.e - 2], abs=1e-6)


def test_k3_is_unbiased_and_never_negative() -> None:
    generator = torch.Generator().manual_seed(0)
    policy = torch.log_softmax(torch.randn(6, generator=generator, dtype=torch.float64), dim=0)
    base = torch.log_softmax(torch.randn(6, generator=generator, dtype=torch.float64), dim=0)
    exact = float((policy.exp() * (policy - base)).sum())
    values = k3(policy, base)
    assert float((policy.exp() * values).sum()) == pytest.approx(exact, abs=1e-12)
    assert values.min() >= 0.0


def test_k3_pulls_towards_the_base() -> None:
    logprobs = torch.tensor([-1.0, -3.0], requires_grad=True)
    k3(logprobs, torch.tensor([-2.0, -2.0])).sum().backward()
    assert logprobs.grad is not None
    assert logprobs.grad.tolist() == pytest.approx([1 - math.exp(-1), 1 - math.e])


@pytest.mark.parametrize(("kl", "beta"), [(0.04, 0.01105), (0.0, 0.00905), (0.22, 0.02718), (0.02, 0.01)])
def test_adaptive_beta_of_the_method_examples(kl: float, beta: float) -> None:
    control = AdaptiveKl(0.01)
    control.update(kl)
    assert control.beta == pytest.approx(beta, abs=5e-6)


@pytest.mark.parametrize("kl", [math.nan, math.inf, -math.inf])
def test_beta_does_not_move_on_a_kl_that_is_not_finite(kl: float) -> None:
    control = AdaptiveKl(0.0123)
    control.update(kl)
    assert control.beta == 0.0123


def test_beta_stays_in_its_bounds() -> None:
    control = AdaptiveKl(0.01)
    control.update(1e9)
    assert control.beta == pytest.approx(0.01 * math.exp(5))
    for _ in range(10):
        control.update(1e9)
    assert control.beta == 100.0
    for _ in range(200):
        control.update(0.0)
    assert control.beta == 1e-3


def test_beta_steers_to_the_given_target() -> None:
    control = AdaptiveKl(1.0, target=0.5, rate=0.2)
    control.update(1.0)
    assert control.beta == pytest.approx(math.exp(0.2))


def test_regression_weights_are_a_softmax() -> None:
    weights = regression_weights([0.2, 0.4, 0.0], 0.2)
    total = math.e + math.e**2 + 1
    assert weights == pytest.approx([math.e / total, math.e**2 / total, 1 / total])
    assert regression_weights([1.0, 0.0], 1e-6) == [1.0, 0.0]


@fuzz(100)
@given(REWARDS, st.floats(1e-3, 10))
def test_regression_weights_are_a_distribution_or_nothing(rewards: list[float], tau: float) -> None:
    weights = regression_weights(rewards, tau)
    assert min(weights) >= 0.0
    assert math.fsum(weights) == pytest.approx(1.0) or weights == [0.0] * len(rewards)
    assert weights[rewards.index(max(rewards))] == max(weights)
