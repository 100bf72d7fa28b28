"""Role adapters: switching is exact and free of side effects."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from asg_core.backbones.interface import Role
from asg_core.backbones.manifest import LoraSettings
from asg_core.errors import PluginError
from asg_core.models.lora import RoleAdapters

from .conftest import IDS, TEXT, Painter, hidden, randomise, text_model


def test_every_adapter_starts_as_the_base_and_off_is_the_base_bit_for_bit(duo):
    text, painter, adapters = duo
    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        base, drawn = text_model()(IDS).last_hidden_state, Painter()(x)
    for role in (None, *Role):
        assert torch.equal(hidden(text, adapters, role), base)
    randomise(adapters)
    assert torch.equal(hidden(text, adapters, None), base)
    with torch.no_grad():
        assert torch.equal(text(IDS).last_hidden_state, base)  # all off outside any block
        assert torch.equal(painter(x), drawn)


def test_a_layer_without_the_role_runs_as_the_base(duo):
    text, painter, adapters = duo
    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    randomise(adapters)
    assert torch.equal(hidden(text, adapters, Role.GENERATOR), hidden(text, adapters, None))
    with torch.no_grad(), adapters.use(Role.SOLVER):
        assert torch.equal(painter(x), Painter()(x))
    with torch.no_grad(), adapters.use(Role.GENERATOR):
        assert not torch.allclose(painter(x), Painter()(x))


def test_switching_there_and_back_restores_outputs_bit_for_bit(duo):
    text, _, adapters = duo
    randomise(adapters)
    first = hidden(text, adapters, Role.PROPOSER)
    assert not torch.allclose(hidden(text, adapters, Role.SOLVER), first)
    assert torch.equal(hidden(text, adapters, Role.PROPOSER), first)


def test_use_nests_and_restores_after_errors(duo):
    adapters = duo[2]
    seen = []
    with adapters.use(Role.SOLVER):
        with adapters.use(None):
            with adapters.use(Role.PROPOSER):
                seen.append(adapters.active)
            seen.append(adapters.active)
        seen.append(adapters.active)
        with pytest.raises(KeyError), adapters.use(Role.GENERATOR):
            raise KeyError
        seen.append(adapters.active)
    assert [*seen, adapters.active] == [Role.PROPOSER, None, Role.SOLVER, Role.SOLVER, None]


def test_switching_never_touches_requires_grad(duo):
    text, painter, adapters = duo
    own = {id(w) for role in Role for w in adapters.parameters(role).values()}
    for role in (Role.SOLVER, None, Role.GENERATOR, Role.PROPOSER):
        with adapters.use(role):
            for parameter in [*text.parameters(), *painter.parameters()]:
                assert parameter.requires_grad == (id(parameter) in own)
    assert len(own) == 2 * 2 * 2 * len(TEXT) + 2 * 2


def test_a_step_on_one_role_leaves_everything_else_bit_identical(duo):
    text, painter, adapters = duo
    randomise(adapters)
    before = {k: v.clone() for k, v in [*text.state_dict().items(), *painter.state_dict().items()]}
    weights = adapters.parameters(Role.SOLVER)
    optimizer = torch.optim.AdamW(
        [w for role in Role for w in adapters.parameters(role).values()], lr=0.1, weight_decay=0.5
    )
    with adapters.use(Role.SOLVER):
        text(IDS).last_hidden_state.square().sum().backward()
    optimizer.step()  # weight decay would move every parameter that has a gradient, even zero
    after = dict([*text.state_dict().items(), *painter.state_dict().items()])
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert len(moved) == len(weights)
    assert all(".solver." in name for name in moved)


def test_float32_adapters_on_a_bfloat16_base():
    text = text_model(torch.bfloat16)
    adapters = RoleAdapters({"text": text}, {role: {"text": TEXT} for role in Role}, LoraSettings(rank=4, alpha=8))
    randomise(adapters)
    weights = adapters.parameters(Role.SOLVER)
    layer = text.layers[0].self_attn.q_proj
    x = torch.randn(5, 16, generator=torch.Generator().manual_seed(0)).bfloat16()
    with adapters.use(Role.SOLVER):
        output = layer(x)
        text(IDS).last_hidden_state.float().sum().backward()
    down, up = (weights[f"text.layers.0.self_attn.q_proj.lora_{k}.weight"] for k in "AB")
    expected = layer.base_layer(x).float() + x.float() @ down.T @ up.T * 2
    assert (
        float(((output.float() - expected).norm() / expected.norm()).detach()) < 0.004
    )  # of bfloat16; see test_adapted_linear
    assert output.dtype == torch.bfloat16
    assert {w.dtype for w in weights.values()} == {w.grad.dtype for w in weights.values()} == {torch.float32}
    assert {p.dtype for n, p in text.named_parameters() if "lora" not in n} == {torch.bfloat16}


def test_initialisation_depends_on_seed_role_and_layer_alone():
    def make(seed, roles=tuple(Role)):
        torch.manual_seed(seed + 17)
        before = torch.get_rng_state()
        adapters = RoleAdapters({"t": text_model()}, {r: {"t": TEXT} for r in roles}, LoraSettings(rank=4), seed)
        assert torch.equal(before, torch.get_rng_state())
        return {r: adapters.parameters(r) for r in roles}

    a, b, c = make(0), make(0, tuple(reversed(Role))), make(1)
    for role in Role:
        for name, weight in a[role].items():
            assert torch.equal(weight, b[role][name])
            if "lora_B" in name:
                assert not weight.any()
            else:
                bound = 1 / math.sqrt(weight.shape[1])
                assert not torch.equal(weight, c[role][name])
                assert 0.8 * bound < weight.abs().max() <= bound
    starts = [w for role in Role for name, w in a[role].items() if "q_proj.lora_A" in name]
    assert len({tuple(w.flatten().tolist()) for w in starts}) == len(starts)


def test_what_cannot_be_injected_is_refused(duo):
    text = duo[0]
    settings = LoraSettings(rank=2)
    with pytest.raises(PluginError, match="already carry adapters"):
        RoleAdapters({"text": text}, {Role.SOLVER: {"text": TEXT}}, settings)
    fresh = text_model()
    with pytest.raises(PluginError, match="overlap"):
        RoleAdapters({"all": fresh, "part": fresh.layers}, {Role.SOLVER: {"all": TEXT}}, settings)
    with pytest.raises(PluginError, match="cannot be put on LlamaModel"):
        RoleAdapters({"text": text_model()}, {Role.SOLVER: {"text": ["no_such_layer"]}}, settings)
    with pytest.raises(PluginError, match="is a Embedding"):
        RoleAdapters({"text": text_model()}, {Role.SOLVER: {"text": ["embed_tokens"]}}, settings)
    only = RoleAdapters({"text": text_model()}, {Role.SOLVER: {"text": TEXT}}, settings)
    with pytest.raises(PluginError, match="no generator adapter"), only.use(Role.GENERATOR):
        pass


def test_broad_targets_do_not_nest_adapters_in_adapters():
    text = text_model()
    adapters = RoleAdapters({"text": text}, {role: {"text": r".*_proj"} for role in Role}, LoraSettings(rank=2))
    assert len({len(adapters.parameters(role)) for role in Role}) == 1
    assert not any(name.count("lora_A") > 1 for name, _ in text.named_parameters())


def test_version_changes_when_weights_do_and_not_by_switching(duo, tmp_path: Path):
    adapters = duo[2]

    def versions():
        found = []
        for role in (None, *Role):
            with adapters.use(role):
                found.append(adapters.version())
        return found

    before = versions()
    assert versions() == before
    assert len(set(before)) == 4
    optimizer = torch.optim.AdamW(adapters.parameters(Role.SOLVER).values())
    for weight in adapters.parameters(Role.SOLVER).values():
        weight.grad = torch.ones_like(weight)
    optimizer.step()
    stepped = versions()
    assert [a == b for a, b in zip(before, stepped, strict=True)] == [True, True, False, True]
    adapters.save(Role.PROPOSER, tmp_path)
    adapters.load(Role.PROPOSER, tmp_path)
    assert [a == b for a, b in zip(stepped, versions(), strict=True)] == [True, False, True, True]
