"""Adapted layers of a block: what autograd keeps, what recomputing gives, and the way back to PEFT."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from peft.tuners.lora import Linear
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from asg_core.backbones.interface import Role
from asg_core.backbones.manifest import LoraSettings
from asg_core.models.lora import RoleAdapters

from .conftest import by_peft, error, noise

IN = 256


class Block(nn.Module):
    """Queries, keys and values of one input, and a projection, as in a decoder layer."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(IN, IN) for _ in "qkvo")

    def forward(self, x: Tensor) -> Tensor:
        heads = (one(x).unflatten(-1, (4, -1)).transpose(1, 2) for one in (self.q, self.k, self.v))
        return x + self.o(nn.functional.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2))


def block() -> tuple[Block, RoleAdapters]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = Block().bfloat16()
    adapters = RoleAdapters({"m": module}, {role: {"m": list("qkvo")} for role in Role}, LoraSettings(rank=4))
    with torch.no_grad():
        for seed, weight in enumerate(adapters.parameters(Role.SOLVER).values()):
            weight.copy_(0.05 * noise(*weight.shape, seed=seed))
    return module, adapters


def saved(run: Callable[[], Tensor], module: nn.Module) -> list[Tensor]:
    """One tensor of each storage that autograd keeps, weights left out."""
    own = {parameter.untyped_storage().data_ptr() for parameter in module.parameters()}
    found: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            found.setdefault(tensor.untyped_storage().data_ptr(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        run()
    return list(found.values())


def test_saved_for_backward_is_the_shared_input_and_nothing_in_float32(monkeypatch):
    module, adapters = block()
    x = noise(1, 64, IN).bfloat16().requires_grad_()
    with adapters.use(None):
        base = saved(lambda: module(x), module)
    with adapters.use(Role.SOLVER):
        ours = saved(lambda: module(x), module)
        with by_peft(monkeypatch):
            theirs = saved(lambda: module(x), module)
    size = x.untyped_storage().nbytes()
    amounts = [sum(one.untyped_storage().nbytes() for one in kept) for kept in (base, ours, theirs)]
    # the attention needs q, k, v and its own result, which is what the last layer is given
    assert amounts[1] - amounts[0] == size
    assert amounts[2] - amounts[0] > 4 * 2 * size
    assert any(one.untyped_storage().data_ptr() == x.untyped_storage().data_ptr() for one in ours)
    assert not [one.shape for one in ours if one.dtype == torch.float32 and one.shape[-1] == IN]


@pytest.mark.parametrize("reentrant", [True, False])
def test_recomputed_layers_give_the_same_gradients(reentrant):
    module, adapters = block()
    x = noise(1, 64, IN).bfloat16().requires_grad_()
    found = []
    for run in (module, lambda x: checkpoint(module, x, use_reentrant=reentrant, preserve_rng_state=False)):
        with adapters.use(Role.SOLVER):
            run(x).float().square().sum().backward()
        parameters = [x, *adapters.parameters(Role.SOLVER).values()]
        found.append([parameter.grad for parameter in parameters])
        for parameter in parameters:
            parameter.grad = None
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    assert all(gradient.any() for gradient in found[0])


def test_peft_merges_unmerges_and_loads_what_is_computed_here(tmp_path: Path):
    module, adapters = block()
    x = noise(1, 64, IN).bfloat16()
    layer = module.q
    assert isinstance(layer, Linear)
    with torch.no_grad(), adapters.use(Role.SOLVER):
        ours = module(x)
        output = layer(x)
        weight = layer.base_layer.weight.clone()
        layer.merge(adapter_names=[Role.SOLVER.value])
        assert error(layer(x), output.double()) < 0.01
        assert not torch.equal(layer.base_layer.weight, weight)
        layer.unmerge()
        assert error(layer.base_layer.weight, weight.double()) < 0.01
    adapters.save(Role.SOLVER, tmp_path)
    plain = block()[0]
    for name in "qkvo":
        setattr(plain, name, getattr(plain, name).base_layer)
    loaded = PeftModel.from_pretrained(plain, tmp_path).eval()
    with torch.no_grad():
        theirs = loaded(x)
        assert type(loaded.base_model.model.q) is Linear
    assert error(ours, theirs.double()) < 0.005
    assert not torch.allclose(ours, block()[0](x))
