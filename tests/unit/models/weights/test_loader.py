"""A model is filled exactly with what the files hold, or the first tensors that do not fit are named."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from asg_core.errors import WeightsError
from asg_core.models.weights.inventory import read_inventory, shapes
from asg_core.models.weights.loader import LoadReport, compare, fill, module_slots


class Net(nn.Module):
    """A parameter of each kind that matters, and a buffer that is stored."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(3, 4)
        self.exact = nn.Linear(4, 2, bias=False)
        self.row = nn.Parameter(torch.zeros(4))
        self.register_buffer("steps", torch.zeros(2, dtype=torch.int64))


def slots_of(net: Net) -> dict:
    places = module_slots(net, lambda name: f"net.{name}")
    places["net.exact.weight"] = replace(places["net.exact.weight"], shape=(2, 4, 1, 1), dtype=torch.float32)
    places["net.row"] = replace(places["net.row"], shape=(7, 4), rows=slice(5, 6))
    return places


@pytest.fixture
def tensors() -> dict[str, torch.Tensor]:
    stream = torch.Generator().manual_seed(0)
    sizes = {"net.body.weight": (4, 3), "net.body.bias": (4,), "net.exact.weight": (2, 4, 1, 1), "net.row": (7, 4)}
    made = {name: torch.randn(size, generator=stream) for name, size in sizes.items()}
    return {**made, "net.steps": torch.tensor([2**40, 3])}


@pytest.fixture
def folder(tmp_path: Path, tensors: dict[str, torch.Tensor]) -> Path:
    """``tensors`` in two shards."""
    for i in range(2):
        save_file(dict(list(tensors.items())[i::2]), tmp_path / f"model-0000{i + 1}-of-00002.safetensors")
    return tmp_path


def test_every_tensor_arrives_in_its_place_dtype_and_shape(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    with torch.device("meta"):
        net = Net()
    places, stored = slots_of(net), read_inventory(folder)
    report = compare(places, shapes(stored))
    report.require(folder)
    assert set(report.matched) == set(tensors)
    fill(places, stored, device="cpu", dtype=torch.bfloat16)
    assert torch.equal(net.body.weight, tensors["net.body.weight"].bfloat16())
    assert torch.equal(net.exact.weight, tensors["net.exact.weight"][:, :, 0, 0])
    assert torch.equal(net.row, tensors["net.row"][5].bfloat16())
    assert torch.equal(net.steps, tensors["net.steps"])
    assert not any(parameter.requires_grad for parameter in net.parameters())
    assert set(net.state_dict()) == {name.removeprefix("net.") for name in tensors}


def test_a_loaded_model_does_not_depend_on_the_file(folder: Path) -> None:
    with torch.device("meta"):
        net = Net()
    fill(slots_of(net), read_inventory(folder), device="cpu", dtype=torch.float32)
    before = net.body.weight.clone()
    for file in folder.iterdir():
        file.write_bytes(bytes(file.stat().st_size))
    assert torch.equal(net.body.weight, before)


def test_missing_unexpected_and_misshapen_tensors_are_named(folder: Path) -> None:
    stored = shapes(read_inventory(folder))
    del stored["net.body.bias"]
    report = compare(slots_of(Net()), {**stored, "net.stray": (1,), "net.row": (6, 4)})
    assert not report.complete
    with pytest.raises(WeightsError) as caught:
        report.require(folder)
    assert "1 missing: net.body.bias" in caught.value.what
    assert "1 unexpected: net.stray" in caught.value.what
    assert "1 misshapen: net.row is [6, 4], expected [7, 4]" in caught.value.what
    assert "3 of 5 tensors fit" in caught.value.why
    for alone in ("missing", "unexpected", "misshapen"):
        assert not LoadReport(matched=("net.row",), **{alone: ("net.stray",)}).complete


def test_only_unexpected_tensors_can_be_allowed(folder: Path) -> None:
    stored = {**shapes(read_inventory(folder)), "net.stray": (1,)}
    compare(slots_of(Net()), stored).require(folder, allow_unexpected=True)
    del stored["net.row"]
    with pytest.raises(WeightsError, match=r"missing: net\.row"):
        compare(slots_of(Net()), stored).require(folder, allow_unexpected=True)


def test_known_tensors_without_a_place_are_reported_as_skipped(folder: Path) -> None:
    stored = {**shapes(read_inventory(folder)), "dead.a": (1,), "net.mask": (3,)}
    report = compare(slots_of(Net()), stored, unread={"net.mask": (3,)}, skip=lambda name: name.startswith("dead."))
    assert report.complete
    assert report.skipped == ("dead.a", "net.mask")
    assert compare(slots_of(Net()), stored, unread={"net.mask": (2,)}).misshapen == ("net.mask is [3], expected [2]",)
    assert compare(slots_of(Net()), stored, unread={"net.gone": (2,)}).missing == ("net.gone",)


def test_one_tensor_is_in_memory_at_a_time(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each tensor is in its place before the next one is read."""
    with torch.device("meta"):
        net = Net()
    left: list[int] = []

    class Watched:
        def __init__(self, *args: object, **kwargs: object) -> None:
            self.tensors = load_file(args[0])  # type: ignore[arg-type]

        def __enter__(self) -> Watched:
            return self

        def __exit__(self, *error: object) -> None:
            pass

        def get_tensor(self, name: str) -> torch.Tensor:
            left.append(sum(tensor.is_meta for tensor in net.state_dict().values()))
            return self.tensors[name]

        def get_slice(self, name: str) -> torch.Tensor:
            return self.get_tensor(name)

    monkeypatch.setattr("asg_core.models.weights.loader.safe_open", Watched)
    fill(slots_of(net), read_inventory(folder), device="cpu", dtype=torch.float32)
    assert left == [5, 4, 3, 2, 1]
