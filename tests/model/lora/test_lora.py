"""Role adapters: switching is exact and free of side effects; files are PEFT's own."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from peft import PeftModel, get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import LlamaConfig, LlamaModel

from asg_core.backbones.interface import Role
from asg_core.backbones.manifest import LoraSettings
from asg_core.errors import PluginError, WeightsError
from asg_core.models.lora import RoleAdapters

TEXT = ["q_proj", "v_proj", "down_proj"]
IDS = torch.tensor([[3, 1, 4, 1, 5, 9]])


def text_model(dtype: torch.dtype = torch.float32) -> LlamaModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=16, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2
        )
        return LlamaModel(config).eval().to(dtype)


class Painter(nn.Module):
    """Stands for the drawing half of a backbone: other layer names, another module."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            self.to_hidden, self.to_out = nn.Linear(4, 8), nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.to_out(torch.tanh(self.to_hidden(x)))


def randomise(adapters: RoleAdapters, roles=Role) -> None:
    stream = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for role in roles:
            for weight in adapters.parameters(role).values():
                weight.copy_(torch.randn(weight.shape, generator=stream) * 0.2)


@pytest.fixture
def duo():
    """Text roles on a text model, the Generator on a painter."""
    text, painter = text_model(), Painter()
    targets = {
        Role.PROPOSER: {"text": TEXT},
        Role.SOLVER: {"text": TEXT},
        Role.GENERATOR: {"painter": r"to_(hidden|out)"},
    }
    adapters = RoleAdapters({"text": text, "painter": painter}, targets, LoraSettings(rank=4, alpha=8), seed=1)
    return text, painter, adapters


def hidden(text, adapters, role):
    with torch.no_grad(), adapters.use(role):
        return text(IDS).last_hidden_state


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
    with pytest.raises(PluginError, match="already carries adapters"):
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


def test_files_round_trip_and_load_with_peft_on_the_plain_model(duo, tmp_path: Path):
    text, painter, adapters = duo
    randomise(adapters)
    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    for role, module, inputs in ((Role.SOLVER, text, IDS), (Role.GENERATOR, painter, x)):
        folder = tmp_path / role.value
        adapters.save(role, folder)
        assert sorted(p.name for p in folder.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
        plain = text_model() if module is text else Painter()
        loaded = PeftModel.from_pretrained(plain, folder).eval()
        with torch.no_grad(), adapters.use(role):
            ours, theirs = module(inputs), loaded(inputs)
        if module is text:
            ours, theirs = ours.last_hidden_state, theirs.last_hidden_state
        assert torch.equal(ours, theirs)
        names = get_peft_model_state_dict(loaded).keys()
        assert set(load_file(folder / "adapter_model.safetensors")) == set(names)
    written = json.loads((tmp_path / "solver" / "adapter_config.json").read_text())
    assert written["target_modules"] == sorted(TEXT)  # sets would be written in another order by every process
    saved = {name: weight.detach().clone() for name, weight in adapters.parameters(Role.SOLVER).items()}
    other = {name: weight.detach().clone() for name, weight in adapters.parameters(Role.PROPOSER).items()}
    first = {p.name: p.read_bytes() for p in (tmp_path / "solver").iterdir()}
    with torch.no_grad():
        for weight in adapters.parameters(Role.SOLVER).values():
            weight.zero_()
    adapters.load(Role.SOLVER, tmp_path / "solver")
    assert all(torch.equal(weight, saved[name]) for name, weight in adapters.parameters(Role.SOLVER).items())
    assert all(torch.equal(weight, other[name]) for name, weight in adapters.parameters(Role.PROPOSER).items())
    adapters.save(Role.SOLVER, tmp_path / "again")
    assert {p.name: p.read_bytes() for p in (tmp_path / "again").iterdir()} == first


def test_a_role_on_several_modules_has_one_folder_for_each(tmp_path: Path):
    text, painter = text_model(), Painter()
    targets = {Role.GENERATOR: {"text": TEXT, "painter": ["to_out"]}}
    adapters = RoleAdapters({"text": text, "painter": painter}, targets, LoraSettings(rank=2))
    randomise(adapters, [Role.GENERATOR])
    adapters.save(Role.GENERATOR, tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["painter", "text"]
    loaded = PeftModel.from_pretrained(Painter(), tmp_path / "painter").eval()
    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), adapters.use(Role.GENERATOR):
        assert torch.equal(painter(x), loaded(x))
    again = RoleAdapters({"text": text_model(), "painter": Painter()}, targets, LoraSettings(rank=2), seed=9)
    again.load(Role.GENERATOR, tmp_path)
    for name, weight in adapters.parameters(Role.GENERATOR).items():
        assert torch.equal(weight, again.parameters(Role.GENERATOR)[name])


KEY = "base_model.model.layers.0.self_attn.q_proj.lora_A.weight"


def spoil(folder: Path, how: str) -> None:
    weights, config = folder / "adapter_model.safetensors", folder / "adapter_config.json"
    tensors = load_file(weights)
    if how == "missing":
        del tensors[KEY]
    elif how == "extra":
        tensors["base_model.model.layers.9.lora_A.weight"] = torch.zeros(1)
    elif how == "misshapen":
        tensors[KEY] = tensors[KEY][:2].contiguous()
    elif how == "truncated":
        weights.write_bytes(weights.read_bytes()[:-100])
        return
    elif how == "no weights":
        weights.unlink()
        return
    else:
        content = json.loads(config.read_text())
        config.write_text("{" if how == "broken config" else json.dumps(content | {"lora_alpha": 99}))
        return
    save_file(tensors, weights)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("missing", f"lacks tensor '{KEY}'"),
        ("extra", "extra tensor 'base_model.model.layers.9.lora_A.weight'"),
        ("misshapen", f"misshapen tensor '{KEY}'"),
        ("truncated", "cannot read"),
        ("no weights", "cannot read"),
        ("broken config", "cannot read"),
        ("alpha", "lora_alpha is 99"),
    ],
)
def test_files_that_do_not_fit_are_refused_and_change_nothing(duo, tmp_path: Path, how, message):
    adapters = duo[2]
    randomise(adapters)
    adapters.save(Role.SOLVER, tmp_path)
    before = {name: weight.detach().clone() for name, weight in adapters.parameters(Role.SOLVER).items()}
    spoil(tmp_path, how)
    with pytest.raises(WeightsError, match=message.replace("[", r"\[")):
        adapters.load(Role.SOLVER, tmp_path)
    assert all(torch.equal(weight, before[name]) for name, weight in adapters.parameters(Role.SOLVER).items())
