"""Checks of ``save_role`` and ``load_role``."""

from __future__ import annotations

import shutil
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from peft import PeftModel, get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from asg_core.errors import WeightsError
from asg_core.testing.conformance.check import check
from asg_core.testing.conformance.roles import outputs
from asg_core.testing.conformance.subject import Subject
from asg_core.testing.conformance.violations import Violation, expect

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


@check(
    "state.files",
    "a saved role is adapter_config.json and adapter_model.safetensors, one folder a module, and nothing else",
    "use RoleAdapters.save; never pickle",
)
def _files(subject: Subject) -> None:
    for role in subject.roles:
        with tempfile.TemporaryDirectory() as folder:
            subject.backbone.save_role(role, Path(folder))
            names = {path.name for path in Path(folder).rglob("*") if path.is_file()}
            expect(names == {CONFIG, WEIGHTS}, f"the {role}'s folder holds {sorted(names)}")


@check(
    "state.round_trip",
    "a role that is saved and loaded into a new instance has the same tensors and the same outputs, bit for bit",
    "save float32 tensors as they are; load into the existing parameters",
)
def _round_trip(subject: Subject) -> None:
    other = subject.fresh(seed=9)
    for role in subject.roles:
        with tempfile.TemporaryDirectory() as folder:
            subject.backbone.save_role(role, Path(folder))
            other.load_role(role, Path(folder))
        for name, weight in subject.backbone.trainable(role).items():
            expect(torch.equal(weight, other.trainable(role)[name]), f"{role}: {name!r} came back changed")
        for key, value in outputs(subject.backbone, role).items():
            expect(torch.equal(value, outputs(other, role)[key]), f"{role}: {key} differs after loading")


@check(
    "state.damaged_files",
    "truncated, missing, extra and misshapen tensors raise WeightsError that names them, and change nothing",
    "read and compare everything before the first parameter is written; RoleAdapters.load does",
)
def _damaged(subject: Subject) -> None:
    role = subject.roles[0]
    before = {name: weight.detach().clone() for name, weight in subject.backbone.trainable(role).items()}
    for damage, harm in _DAMAGES.items():
        with tempfile.TemporaryDirectory() as folder:
            subject.backbone.save_role(role, Path(folder))
            named = harm(sorted(Path(folder).rglob(WEIGHTS))[0])
            try:
                subject.backbone.load_role(role, Path(folder))
            except WeightsError as error:
                expect(named in str(error), f"{damage}: the error does not name {named!r}: {error.what}")
            except Exception as error:
                raise Violation(f"{damage} raises {type(error).__name__}, not WeightsError") from error
            else:
                raise Violation(f"{damage} is loaded without an error")
        for name, weight in subject.backbone.trainable(role).items():
            expect(torch.equal(weight, before[name]), f"{damage}: {name!r} was changed before the error")


@check(
    "state.peft",
    "PEFT itself can load a saved role",
    "write PEFT's own names (base_model.model.<layer>.lora_A.weight) and a config whose target_modules match them",
)
def _peft(subject: Subject) -> None:
    for role in subject.roles:
        with tempfile.TemporaryDirectory() as folder:
            subject.backbone.save_role(role, Path(folder))
            for file in Path(folder).rglob(WEIGHTS):
                saved = load_file(file)
                try:
                    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
                        warnings.simplefilter("error")  # PEFT only warns of tensors that it does not find
                        model = PeftModel.from_pretrained(_skeleton(saved), str(file.parent))
                except Exception as error:
                    raise Violation(f"PEFT cannot load the {role}: {type(error).__name__}: {error}") from error
                loaded = get_peft_model_state_dict(model)
                expect(loaded.keys() == saved.keys(), f"PEFT finds other tensors of the {role} than were saved")
                wrong = [name for name in saved if not torch.equal(saved[name], loaded[name].cpu())]
                expect(not wrong, f"PEFT reads other values of the {role}: {wrong[:1]}")


def _truncate(file: Path) -> str:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    return file.parent.name


def _drop(file: Path) -> str:
    tensors: dict[str, Tensor] = load_file(file)
    name = min(tensors)
    del tensors[name]
    save_file(tensors, file)
    return name


def _add(file: Path) -> str:
    save_file({**load_file(file), "stray.weight": torch.zeros(1)}, file)
    return "stray.weight"


def _reshape(file: Path) -> str:
    tensors: dict[str, Tensor] = load_file(file)
    name = min(tensors)
    save_file({**tensors, name: tensors[name][:-1].contiguous()}, file)
    return name


def _remove(file: Path) -> str:
    shutil.rmtree(file.parent)
    return file.parent.name


_DAMAGES: dict[str, Callable[[Path], str]] = {
    "a truncated file": _truncate,
    "a file that lacks a tensor": _drop,
    "a file with an extra tensor": _add,
    "a file with a misshapen tensor": _reshape,
    "a missing folder": _remove,
}


def _skeleton(saved: dict[str, Tensor]) -> nn.Module:
    """A model with nothing but the linear layers that the saved tensors adapt, under their names."""
    root = nn.Module()
    for name, down in saved.items():
        if not name.endswith(".lora_A.weight"):
            continue
        path = name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
        up = saved[name.replace(".lora_A.", ".lora_B.")]
        *parents, leaf = path.split(".")
        module = root
        for parent in parents:
            if parent not in dict(module.named_children()):
                module.add_module(parent, nn.Module())
            module = module.get_submodule(parent)
        module.add_module(leaf, nn.Linear(down.shape[1], up.shape[0], bias=False))
    return root
