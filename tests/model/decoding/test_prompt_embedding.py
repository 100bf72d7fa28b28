"""One vector space for pictures and texts, without what all of a kind have in common."""

from __future__ import annotations

import pytest
import torch

from asg_core.backbones.interface import Role
from asg_core.models.decoding import PromptEmbedding


@pytest.fixture
def embedding(rig_qwen):
    return PromptEmbedding(rig_qwen.model, rig_qwen.adapters)


def test_vectors_have_length_one_and_do_not_depend_on_their_batch_or_an_adapter(embedding, rig_qwen, make_picture):
    items = [make_picture(1), "a red circle", make_picture(2, 84, 56), "two birds on a wall"]
    together = embedding(items)
    assert together.norm(dim=1) == pytest.approx(torch.ones(4).tolist(), abs=1e-5)
    with rig_qwen.adapters.use(Role.SOLVER):
        alone = torch.cat([embedding([item]) for item in reversed(items)]).flip(0)
    assert float((together - alone).abs().max()) < 1e-4
    assert embedding([]).shape == (0, together.shape[1])


def test_items_of_a_kind_are_not_all_alike(embedding, make_picture):
    """The hidden states of one prompt with other pictures in it are nearly parallel; the vectors are not."""
    for items in ([make_picture(n) for n in range(6)], ["a", "red", "bird sits", "on the", "green", "wall"]):
        vectors = embedding(items)
        cosines = (vectors @ vectors.T)[~torch.eye(6, dtype=torch.bool)]
        assert float(cosines.mean()) < 0.6
