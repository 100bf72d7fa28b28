"""The released size, without its weights: names and shapes on the meta device."""

from __future__ import annotations

from pathlib import Path

import pytest
from asg_vargpt.config import infer
from asg_vargpt.released import ARCHITECTURE, CONFIG
from asg_vargpt.weights_map import compare_tensors, empty_model, slots, unused_tensors

INVENTORY = Path(__file__).parent / "fixtures" / "inventory.tsv"


@pytest.fixture(scope="module")
def inventory() -> dict[str, tuple[int, ...]]:
    """Released names and shapes."""
    lines = [line.split("\t") for line in INVENTORY.read_text(encoding="utf-8").splitlines() if line[0] != "#"]
    return {name: tuple(map(int, shape.split(","))) for name, shape, _, _ in lines}


def test_expected_names_and_shapes_are_the_inventory(inventory: dict[str, tuple[int, ...]]) -> None:
    model = empty_model(CONFIG, infer(CONFIG, inventory))
    assert len(inventory) == 1706
    expected = {name: slot.shape for name, slot in slots(model).items()}
    assert {**expected, **unused_tensors(model.architecture, model.hidden_size)} == inventory
    assert compare_tensors(model, inventory).complete


def test_parameters_add_up_to_the_published_size(inventory: dict[str, tuple[int, ...]]) -> None:
    model = empty_model(CONFIG, infer(CONFIG, inventory))
    assert sum(p.numel() for p in model.visual.parameters()) == 675_759_104
    assert sum(p.numel() for p in model.language_model.parameters()) == 7_070_619_136
    assert sum(p.numel() for p in model.vae.parameters()) == 110_118_083 - 32


def test_only_one_row_of_the_start_embedding_is_kept(inventory: dict[str, tuple[int, ...]]) -> None:
    model = empty_model(CONFIG, infer(CONFIG, inventory))
    assert inventory["sos_embedding.weight"] == (151658, 2048)
    assert model.sos_embedding.shape == (2048,)


def test_sizes_are_read_off_the_released_tensors(inventory: dict[str, tuple[int, ...]]) -> None:
    assert infer(CONFIG, inventory) == ARCHITECTURE
