"""Rows of one batch, each under the adapter of its own role."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from asg_core.backbones.interface import Role
from asg_core.backbones.manifest import LoraSettings
from asg_core.errors import PluginError
from asg_core.models.lora import RoleAdapters

from .conftest import IDS, TEXT, hidden, randomise, text_model


def rows_side_by_side(dtype: torch.dtype):
    """Per row: under its own role in a mixed batch, and in a batch of that role alone; of one layer, of the model."""
    text = text_model(dtype)
    targets = {role: {"text": TEXT if role is not Role.GENERATOR else ["q_proj"]} for role in Role}
    adapters = RoleAdapters({"text": text}, targets, LoraSettings(rank=4, alpha=8))
    randomise(adapters)
    roles = [Role.PROPOSER, Role.PROPOSER, None, Role.SOLVER, Role.GENERATOR, Role.SOLVER]
    rows = torch.randn(6, 50, 16, generator=torch.Generator().manual_seed(2)).to(dtype)
    ids = torch.arange(6 * 5).view(6, 5) % 16
    calls = [
        lambda: text.layers[0].self_attn.q_proj(rows),
        lambda: text.layers[0].self_attn.v_proj(rows),
        lambda: text(ids).last_hidden_state,
    ]
    for call in calls:
        with adapters.use_rows(roles):
            mixed = call()
        assert not mixed.requires_grad
        with torch.no_grad():
            alone = []
            for i, role in enumerate(roles):
                with adapters.use(role):
                    alone.append(call()[i])
        yield mixed, torch.stack(alone)


def test_rows_side_by_side_are_the_rows_of_their_own_role():
    for mixed, alone in rows_side_by_side(torch.float64):
        torch.testing.assert_close(mixed, alone, rtol=0, atol=1e-12)


def test_rows_side_by_side_are_rounded_like_the_rows_of_one_role():
    """What the adapter adds is added in float32: rounded by itself first, every fourth number would be another."""
    for mixed, alone in list(rows_side_by_side(torch.bfloat16))[:2]:
        assert float((mixed != alone).double().mean()) < 0.01


def test_rows_side_by_side_leave_nothing_behind(duo):
    text, _, adapters = duo
    randomise(adapters)
    before = hidden(text, adapters, Role.SOLVER)
    with adapters.use(Role.SOLVER):
        with adapters.use_rows([Role.PROPOSER]):
            mixed = text(IDS).last_hidden_state
        torch.testing.assert_close(mixed, hidden(text, adapters, Role.PROPOSER), rtol=0, atol=1e-6)
        assert torch.equal(text(IDS).last_hidden_state, before)
    with pytest.raises(KeyError), adapters.use_rows([Role.PROPOSER]):
        raise KeyError
    assert adapters.active is None
    assert torch.equal(hidden(text, adapters, Role.SOLVER), before)
    assert torch.equal(hidden(text, adapters, None), text_model()(IDS).last_hidden_state)


def test_rows_side_by_side_are_told_apart_without_lists_of_indices(duo):
    """PEFT's way would send such a list to the device, twice for every adapter and layer."""
    text, _, adapters = duo
    seen = set()

    class Noting(TorchDispatchMode):
        def __torch_dispatch__(self, op, types, args=(), kwargs=None):
            seen.add(op.name())
            return op(*args, **(kwargs or {}))

    layer = text.layers[0].self_attn.q_proj
    rows = torch.ones(4, 3, 16)
    with adapters.use_rows([Role.PROPOSER, Role.SOLVER, None, Role.SOLVER]), Noting():
        layer(rows)
        layer(x=rows)  # by keyword, too
    assert "aten::mm" in seen
    assert not {name for name in seen if "index" in name or "lift" in name}


def test_rows_without_a_role_each_are_refused(duo):
    text, _, adapters = duo
    with pytest.raises(PluginError, match="1 rows where 2 rows"), adapters.use_rows([Role.SOLVER, None]):
        text(IDS)
    few = RoleAdapters({"text": text_model()}, {Role.SOLVER: {"text": TEXT}}, LoraSettings(rank=4, alpha=8))
    with pytest.raises(PluginError, match="no proposer adapter"), few.use_rows([Role.PROPOSER]):
        pass
