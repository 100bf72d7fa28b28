"""Adapters over a 16-bit base: as exact as PEFT's float32 way, at two products a layer and no copy of an input.

``by_peft`` is PEFT's own forward on the same layer, ``exact`` the same in float64.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from asg_core.backbones.interface import Role
from asg_core.backbones.manifest import LoraSettings
from asg_core.models.adapted_linear import AdaptedLinear
from asg_core.models.lora import RoleAdapters

from .conftest import by_peft, error, noise

IN, OUT, SCALING = 256, 384, 2.75


class Quantised(nn.Linear):
    """As quantisers do it: codes of one byte, decoded in the dtype of the input, whose results are not contiguous."""

    def __init__(self, like: nn.Linear) -> None:
        super().__init__(like.in_features, like.out_features, bias=False)
        self.scale = float(like.weight.abs().max()) / 127
        codes = (like.weight / self.scale).round() + 128
        self.weight = nn.Parameter(codes.to(torch.uint8), requires_grad=False)
        self.bias = like.bias

    def plain(self, dtype: torch.dtype) -> Tensor:
        return ((self.weight.float() - 128) * self.scale).to(dtype)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.plain(x.dtype), self.bias).transpose(0, -1).contiguous().transpose(0, -1)


def adapted(
    dtype: torch.dtype, base: nn.Linear | None = None, spread: float = 0.0075
) -> tuple[AdaptedLinear, RoleAdapters]:
    """A layer and its adapters, each with its own B of ``spread``; by default they make a twelfth of the output."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = nn.Sequential(base or nn.Linear(IN, OUT).to(dtype))
    adapters = RoleAdapters({"m": module}, {role: {"m": ["0"]} for role in Role}, LoraSettings(rank=16, alpha=44))
    with torch.no_grad():
        for seed, role in enumerate(Role):
            up = adapters.parameters(role)["m.0.lora_B.weight"]
            up.copy_(spread * noise(*up.shape, seed=seed))
    return module[0], adapters


def weights_of(layer: AdaptedLinear, role: Role = Role.SOLVER) -> tuple[nn.Parameter, nn.Parameter]:
    return layer.lora_A[role.value].weight, layer.lora_B[role.value].weight


def results(call: Callable[[Tensor], Tensor], x: Tensor, weights: tuple[Tensor, Tensor], after: Tensor) -> list[Tensor]:
    """The output, and gradients of its float32 sum over ``after`` by the input and both weights."""
    given = x.detach().requires_grad_()
    output = call(given)
    gradients = torch.autograd.grad((output.to(after.dtype) * after).sum(), [given, *weights])
    return [output.detach(), *gradients]


def exact(layer: AdaptedLinear, x: Tensor, after: Tensor, weight: Tensor | None = None) -> list[Tensor]:
    weight = (layer.base_layer.weight if weight is None else weight).double()
    bias = layer.base_layer.bias.double()
    down, up = (one.detach().double().requires_grad_() for one in weights_of(layer))
    return results(lambda x: x @ weight.T + bias + x @ down.T @ up.T * SCALING, x.double(), (down, up), after.double())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_errors_are_those_of_rounding_and_no_larger_than_by_peft(dtype, monkeypatch):
    layer, adapters = adapted(dtype)
    x, after = noise(2, 512, IN).to(dtype), noise(2, 512, OUT, seed=2)
    true = exact(layer, x, after)
    with adapters.use(Role.SOLVER):
        ours = results(layer, x, weights_of(layer), after)
        with by_peft(monkeypatch):
            theirs = results(layer, x, weights_of(layer), after)
    assert [one.dtype for one in ours] == [dtype, dtype, torch.float32, torch.float32]
    rounded = [error(one.to(dtype), one) for one in true]
    errors, before = ([error(a, b) for a, b in zip(found, true, strict=True)] for found in (ours, theirs))
    for mine, peft in zip(errors, before, strict=True):
        assert mine <= 1.01 * peft  # A, B and A x are rounded too, of a share of a twelfth: half a percent on top
    # Rounded are the base's share and the sum; by the input also the gradient that arrives; for the weights only that.
    for mine, one, times in zip(errors, rounded, (2, 3, 1, 1), strict=True):
        assert mine == pytest.approx(times**0.5 * one, rel=0.05)


def test_small_steps_of_the_weights_reach_the_gradients(monkeypatch):
    """The weights that the backward pass sees have more than the 8 bits of bfloat16."""
    layer, adapters = adapted(torch.bfloat16)
    x, after = noise(64, IN).bfloat16(), noise(64, OUT, seed=2).bfloat16().float()
    true = exact(layer, x, after)
    with adapters.use(Role.SOLVER):
        ours = results(layer, x, weights_of(layer), after)
    for found, one in zip(ours[2:], true[2:], strict=True):
        assert error(found, one) < 2e-5


@pytest.mark.parametrize("track", [True, False], ids=["with gradients", "without"])
def test_over_a_float32_base_every_number_is_that_of_peft(track, monkeypatch):
    layer, adapters = adapted(torch.float32)
    x, after = noise(2, 5, IN), noise(2, 5, OUT, seed=2)
    with adapters.use(Role.SOLVER), torch.set_grad_enabled(track):
        run = (lambda: results(layer, x, weights_of(layer), after)) if track else (lambda: [layer(x)])
        ours = run()
        with by_peft(monkeypatch):
            theirs = run()
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize(
    "make",
    [
        lambda: noise(IN),
        lambda: noise(0, IN),
        lambda: noise(2, 3, 4, IN),
        lambda: noise(7, IN, 2).transpose(1, 2),
        lambda: noise(5, 7, IN).transpose(0, 1),
        lambda: noise(7, 2 * IN)[:, ::2],
        lambda: noise(1, IN).expand(6, IN),
    ],
    ids=["one position", "none", "four axes", "last axis strided", "rows strided", "every other number", "expanded"],
)
@pytest.mark.parametrize("quantised", [False, True])
def test_inputs_of_any_shape_and_layout(make, quantised):
    """With and without gradients, and over a weight of uint8."""
    layer, adapters = adapted(torch.bfloat16, spread=0.1)
    weight = layer.base_layer.weight
    if quantised:
        layer.base_layer = Quantised(layer.base_layer)
        weight = layer.base_layer.plain(torch.bfloat16)
    x = make().bfloat16()
    after = noise(*x.shape[:-1], OUT, seed=2)
    with adapters.use(Role.SOLVER):
        found = results(layer, x, weights_of(layer), after)
        with torch.no_grad():
            untracked = layer(x)
    assert found[0].shape == untracked.shape == after.shape
    assert found[0].dtype == untracked.dtype == found[1].dtype == torch.bfloat16
    assert torch.equal(found[0], untracked)
    true = exact(layer, x, after, weight)
    for one, expected, bound in zip(found, true, (0.004, 0.006, 0.003, 0.003), strict=True):
        assert one.shape == expected.shape
        assert x.numel() == 0 or error(one, expected) < bound


def test_rows_side_by_side_over_results_that_are_not_contiguous():
    layer, adapters = adapted(torch.bfloat16, spread=0.1)
    layer.base_layer = Quantised(layer.base_layer)
    x = noise(4, 5, IN).bfloat16()
    roles = [Role.SOLVER, Role.SOLVER, None, Role.PROPOSER]
    with adapters.use_rows(roles):
        mixed = layer(x)
    for row, given, role in zip(mixed, x, roles, strict=True):
        with adapters.use(role), torch.no_grad():
            assert torch.equal(row, layer(given[None])[0])


def test_off_and_fresh_adapters_are_the_base_bit_for_bit():
    fresh, adapters = adapted(torch.bfloat16, spread=0.0)
    x = noise(3, 5, IN).bfloat16()
    base = fresh.base_layer(x)
    for role in (None, *Role):
        for track in (True, False):
            with adapters.use(role), torch.set_grad_enabled(track):
                assert torch.equal(fresh(x), base)
    with adapters.use_rows([Role.SOLVER, None, Role.PROPOSER]):
        assert torch.equal(fresh(x), base)


def test_there_and_back_again_is_the_same_bit_for_bit():
    layer, adapters = adapted(torch.bfloat16, spread=0.1)
    x = noise(3, 5, IN).bfloat16()

    def run(role: Role | None) -> Tensor:
        with adapters.use(role), torch.no_grad():
            return layer(x)

    first = run(Role.SOLVER)
    assert not torch.equal(run(Role.PROPOSER), first)
    assert torch.equal(run(Role.SOLVER), first)
    assert torch.equal(run(None), layer.base_layer(x))


# -- weights that change ----------------------------------------------------------------------------------------------


def test_the_newest_weights_decide_in_place_and_in_no_file():
    """Also within one ``use``, also if the first pass was in inference mode; the other roles stay as they were."""
    layer, adapters = adapted(torch.bfloat16, spread=0.1)
    x = noise(4, IN).bfloat16()
    names = set(layer.state_dict())
    with torch.inference_mode():
        for role in (Role.SOLVER, Role.PROPOSER):
            with adapters.use(role):
                other = layer(x).clone()
    with adapters.use(Role.SOLVER):
        before = layer(x)
        places = {name: buffer.data_ptr() for name, buffer in layer.named_buffers()}
        with torch.no_grad():
            for weight in weights_of(layer):
                weight.mul_(-0.7)
        after = layer(x)
        with torch.no_grad():
            for weight, of in zip(weights_of(fresh := adapted(torch.bfloat16)[0]), weights_of(layer), strict=True):
                weight.copy_(of)
        assert {name: buffer.data_ptr() for name, buffer in layer.named_buffers()} == places
    assert places
    assert not torch.equal(after, before)
    fresh._disable_adapters, fresh._active_adapter = False, [Role.SOLVER.value]
    assert torch.equal(fresh(x), after)
    with torch.no_grad(), adapters.use(Role.PROPOSER):
        assert torch.equal(layer(x), other)
    assert set(layer.state_dict()) == names


def test_weights_are_cast_once_and_not_at_every_pass(monkeypatch):
    layer, adapters = adapted(torch.bfloat16)
    casts = []
    monkeypatch.setattr("asg_core.models.adapted_linear._split", lambda value, parts: casts.append(value.shape))
    x = noise(4, IN).bfloat16()
    with adapters.use(Role.SOLVER), torch.no_grad():
        layer(x)
        layer(x)
        assert len(casts) == 2
        weights_of(layer)[1].add_(1)
        layer(x)
    assert len(casts) == 4


def test_a_traced_pass_reads_the_weights_of_the_latest_use():
    """Whole graphs, the same bits as eagerly, and nothing to trace again when weights change."""
    layer, adapters = adapted(torch.bfloat16, spread=0.1)
    x = noise(4, IN).bfloat16()
    programs = []

    def backend(graph, inputs):
        programs.append(graph)
        return graph.forward

    with torch.no_grad(), adapters.use(Role.SOLVER):
        layer(x)
    traced = torch.compile(lambda x: layer(x), fullgraph=True, dynamic=False, backend=backend)
    earlier: list[Tensor] = []
    for _ in range(3):
        with torch.no_grad():
            with adapters.use(Role.SOLVER):
                found = traced(x)
                assert torch.equal(found, layer(x))
            assert not any(torch.equal(found, other) for other in earlier)
            earlier.append(found.clone())
            for weight in weights_of(layer):
                weight.mul_(1.5)
    assert len(programs) == 1
    read = [node for node in programs[0].graph.find_nodes(op="placeholder") if "shadow" in node.target]
    assert len(read) == 2
    assert all("_dynamo_static_input_type" in node.meta["tensor_dict"] for node in read)  # graphs copy other inputs


def test_a_pass_that_is_traced_first_of_all_is_right_too(monkeypatch):
    layer, adapters = adapted(torch.bfloat16, spread=0.1)
    x = noise(4, IN).bfloat16()
    with torch.no_grad(), adapters.use(Role.SOLVER):
        found = torch.compile(lambda x: layer(x), fullgraph=True, backend="eager")(x)
        with by_peft(monkeypatch):
            assert torch.equal(found, layer(x))


def test_a_write_between_forward_and_backward_is_an_error():
    layer, adapters = adapted(torch.bfloat16)
    with adapters.use(Role.SOLVER):
        output = layer(noise(4, IN).bfloat16())
    with torch.no_grad():
        weights_of(layer)[0].mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.float().sum().backward()


# -- memory -----------------------------------------------------------------------------------------------------------
