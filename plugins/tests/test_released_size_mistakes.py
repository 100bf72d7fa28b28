"""Every bar of ``test_released_size.py`` is missed by code that deserves it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from asg_core.backbones.interface import Role
from asg_core.models.decoding import sampling
from asg_core.training.optimizer import RoleOptimizer
from devkit.pretended_cuda import PretendedCuda
from devkit.pretended_cuda.bars import complaints
from devkit.pretended_cuda.workload import Workload


@pytest.fixture(scope="module", params=["vargpt"])
def workload(request: pytest.FixtureRequest, pretended: Callable[[], PretendedCuda]) -> Iterator[Workload]:
    """A backbone on a device."""
    pytest.importorskip(f"asg_{request.param}", reason=f"asg-{request.param} is not installed")
    with pretended() as card:
        yield Workload(card, request.param, "slice")


def _complaint(workload: Workload, section: str, *words: str) -> None:
    found = [said for said in complaints(workload.run(section)) if all(word in said for word in words)]
    assert found, f"{section}: nobody complained of {words}"


def _before_each_token(monkeypatch: pytest.MonkeyPatch, mistake: Callable[[Any], None]) -> None:
    append_token = sampling.append_token

    def mistaken(model: Any, rows: Any, ids: Tensor) -> Any:
        mistake(ids)
        return append_token(model, rows, ids)

    monkeypatch.setattr(sampling, "append_token", mistaken)


@pytest.mark.parametrize(
    ("mistake", "words"),
    [
        (lambda ids: int(ids[0]), ("4 passes wait 8 times",)),
        (lambda ids: torch.zeros(3).to(ids.device), ("copies that wait",)),
        (lambda ids: ids + torch.ones(len(ids)), ("host and device meet",)),
        (lambda ids: ids[:, None] @ ids[None], ("a GPU refuses", "no whole numbers")),
    ],
)
def test_a_mistake_in_the_token_loop_is_found(
    workload: Workload, monkeypatch: pytest.MonkeyPatch, mistake: Callable[[Any], None], words: tuple[str, ...]
) -> None:
    _before_each_token(monkeypatch, mistake)
    _complaint(workload, "decode", *words)


def test_a_mask_that_no_fused_kernel_takes_is_found(workload: Workload, monkeypatch: pytest.MonkeyPatch) -> None:
    attend = torch.nn.functional.scaled_dot_product_attention

    def mistaken(query: Tensor, *rest: Any, attn_mask: Tensor | None = None, **options: Any) -> Tensor:
        if attn_mask is not None:
            attn_mask = attn_mask.to(query.dtype).mT.contiguous().mT
        return attend(query, *rest, attn_mask=attn_mask, **options)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", mistaken)
    _complaint(workload, "prefill", "math kernel")


@pytest.mark.parametrize("workload", ["bagel", "vargpt"], indirect=True)
def test_a_network_that_reads_while_it_draws_is_found(workload: Workload) -> None:
    model = workload.backbone.model
    network = model.language_model.model if workload.name == "bagel" else model.decoder
    reading = network.register_forward_hook(_read_a_weight)
    try:
        _complaint(workload, "drawing", " wait ")
    finally:
        reading.remove()


def _read_a_weight(module: torch.nn.Module, *_: Any) -> None:
    float(next(module.parameters()).flatten()[0])


@pytest.mark.parametrize(("section", "role"), [("token_logits", Role.SOLVER), ("generation_loss", Role.GENERATOR)])
def test_a_backward_pass_that_reads_is_found(workload: Workload, section: str, role: Role) -> None:
    weight = list(workload.backbone.trainable(role).values())[-1]
    reading = weight.register_hook(lambda gradient: gradient * float(gradient.sum()))
    try:
        _complaint(workload, section, "a backward pass waits")
    finally:
        reading.remove()


def test_an_optimizer_that_looks_at_every_moment_is_found(workload: Workload, monkeypatch: pytest.MonkeyPatch) -> None:
    def looking(self: RoleOptimizer) -> bool:
        return all(bool(parameter.isfinite().all()) for parameter in self.parameters.values())

    monkeypatch.setattr(RoleOptimizer, "_state_is_finite", looking)
    _complaint(workload, "understanding step, 1 image", "an update of 1 optimizer steps waits")


def test_work_that_the_plan_does_not_know_is_found(workload: Workload, monkeypatch: pytest.MonkeyPatch) -> None:
    _before_each_token(monkeypatch, lambda ids: workload.backbone.text.embed_tokens(ids.expand(512, -1)) @ _square())
    _complaint(workload, "decode", "times the plan's")


def _square() -> Tensor:
    return torch.empty(3584, 3584, dtype=torch.bfloat16, device="cuda")
