"""The released size, without its weights: names and shapes on the meta device."""

from __future__ import annotations

from pathlib import Path

import pytest
from asg_vargpt.architecture import infer
from asg_vargpt.checkpoint import compare, empty_model, expected_tensors

INVENTORY = Path(__file__).parent / "fixtures" / "inventory.tsv"

CONFIG = {
    "vocab_size": 152064,
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
    "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
    "use_sliding_window": False,
    "tie_word_embeddings": False,
    "vision_config": {"model_type": "vargpt_qwen2_vl"},
    "special_tokens": {
        "image_gen_start_token_id": 151657,
        "image_gen_end_token_id": 151658,
        "image_gen_pad_token_id": 151659,
    },
}


@pytest.fixture(scope="module")
def inventory() -> dict[str, tuple[int, ...]]:
    """Released names and shapes."""
    lines = [line.split("\t") for line in INVENTORY.read_text(encoding="utf-8").splitlines() if line[0] != "#"]
    return {name: tuple(map(int, shape.split(","))) for name, shape, _, _ in lines}


def test_expected_names_and_shapes_are_the_inventory(inventory: dict[str, tuple[int, ...]]) -> None:
    model = empty_model(CONFIG, infer(CONFIG, inventory))
    assert len(inventory) == 1706
    assert expected_tensors(model) == inventory
    assert compare(model, inventory).complete


def test_parameters_add_up_to_the_published_size(inventory: dict[str, tuple[int, ...]]) -> None:
    model = empty_model(CONFIG, infer(CONFIG, inventory))
    assert sum(p.numel() for p in model.visual.parameters()) == 675_759_104
    assert sum(p.numel() for p in model.language_model.parameters()) == 7_070_619_136
    assert sum(p.numel() for p in model.vae.parameters()) == 110_118_083 - 32


def test_only_one_row_of_the_start_embedding_is_kept(inventory: dict[str, tuple[int, ...]]) -> None:
    model = empty_model(CONFIG, infer(CONFIG, inventory))
    assert inventory["sos_embedding.weight"] == (151658, 2048)
    assert model.sos_embedding.shape == (2048,)
