"""Files of roles are PEFT's own, exact, and refused if they do not fit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel, get_peft_model_state_dict
from safetensors.torch import load_file, save_file

from asg_core.backbones.interface import Role
from asg_core.backbones.manifest import LoraSettings
from asg_core.errors import WeightsError
from asg_core.models.lora import RoleAdapters

from .conftest import IDS, TEXT, Painter, randomise, text_model


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
