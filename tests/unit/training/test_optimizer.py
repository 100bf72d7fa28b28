from __future__ import annotations

import pytest
import torch
from accelerate import Accelerator

from asg_core.training.optimizer import RoleOptimizer


def make(lr: float = 0.1, max_grad_norm: float = 1.0) -> tuple[torch.nn.Parameter, RoleOptimizer]:
    weight = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
    return weight, RoleOptimizer({"w": weight}, lr, 0.01, max_grad_norm, Accelerator(cpu=True))


def test_accumulated_losses_equal_their_sum() -> None:
    one, a = make()
    two, b = make()
    a.step([lambda: one[0] ** 2, lambda: one[1] ** 3])
    b.step([lambda: two[0] ** 2 + two[1] ** 3])
    assert torch.equal(one, two)


def test_gradient_norm_is_reported_before_clipping_and_clipped_after() -> None:
    weight, optimizer = make(max_grad_norm=1.0)
    result = optimizer.step([lambda: (weight * torch.tensor([30.0, 40.0])).sum()])
    assert result.grad_norm == pytest.approx(50.0)
    assert optimizer.state()["w.exp_avg"].tolist() == pytest.approx([0.1 * 0.6, 0.1 * 0.8])


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_non_finite_loss_changes_nothing(bad: float) -> None:
    weight, optimizer = make()
    optimizer.step([lambda: (weight**2).sum()])
    before, state = weight.detach().clone(), optimizer.state()
    state = {k: v.clone() for k, v in state.items()}
    result = optimizer.step([lambda: (weight**2).sum(), lambda: weight.sum() * bad])
    assert result.nonfinite
    assert not result.applied
    assert torch.equal(weight, before)
    assert all(torch.equal(v, optimizer.state()[k]) for k, v in state.items())


def test_non_finite_gradient_of_a_finite_loss_changes_nothing() -> None:
    weight, optimizer = make()
    result = optimizer.step(
        [lambda: torch.sqrt((weight - weight.detach()).abs().sum()) * torch.tensor(float("inf")).reciprocal()]
    )
    before = torch.tensor([3.0, 4.0])
    assert result.nonfinite
    assert torch.equal(weight.detach(), before)
    assert optimizer.state() == {}


def test_the_step_after_a_dropped_one_is_as_if_it_had_not_been() -> None:
    one, a = make()
    two, b = make()
    a.step([lambda: (one**2).sum(), lambda: one.sum() * float("nan")])
    a.step([lambda: (one**2).sum()])
    b.step([lambda: (two**2).sum()])
    assert torch.equal(one, two)


def test_zero_learning_rate_and_no_losses_touch_nothing() -> None:
    weight, optimizer = make(lr=0.0)
    assert not optimizer.step([lambda: (weight**2).sum()]).applied
    assert optimizer.state() == {}
    weight, optimizer = make()
    assert not optimizer.step([]).applied
    assert weight.tolist() == [3.0, 4.0]


def test_restored_moments_continue_exactly() -> None:
    one, a = make()
    a.step([lambda: (one**2).sum()])
    two, b = make()
    with torch.no_grad():
        two.copy_(one)
    b.restore({k: v.clone() for k, v in a.state().items()})
    a.step([lambda: (one**3).sum()])
    b.step([lambda: (two**3).sum()])
    assert torch.equal(one, two)


def test_a_gradient_of_zero_moves_nothing_not_even_by_weight_decay() -> None:
    weight, optimizer = make()
    result = optimizer.step([lambda: (weight * 0.0).sum()])
    assert not result.applied
    assert weight.tolist() == [3.0, 4.0]
    assert optimizer.state() == {}
