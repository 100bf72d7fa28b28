"""Vision towers that pack pictures into one row: the stock numbers, from few calls of attention."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from asg_core.models.decoding.packed_vision import Grid, PackedVision
from asg_core.testing.qwen import random_qwen

SQUARE, EVEN, RAGGED, TALL = (4, 4), (8, 12), (6, 10), (14, 6)
"""Grids of patches. A window of the tower is 4 x 4: one, six, and two with windows cut short on two sides."""


def tower(kind: str) -> torch.nn.Module:
    """Two blocks. "windows": Qwen2.5-VL, the first block windowed; "whole": Qwen2-VL, both attend to whole pictures."""
    if kind == "windows":
        return random_qwen(dtype=torch.float64).model.visual
    config = Qwen2VLConfig(
        text_config={"vocab_size": 16, "hidden_size": 32, "intermediate_size": 16, "num_hidden_layers": 1}
        | {"num_attention_heads": 2, "num_key_value_heads": 1},
        vision_config={"depth": 2, "embed_dim": 32, "hidden_size": 32, "num_heads": 2, "mlp_ratio": 1},
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = Qwen2VLForConditionalGeneration(config).model.visual
        for parameter in model.parameters():
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=0.2)
    return model.eval().requires_grad_(False).double()


def patches_of(grids: Sequence[Grid]) -> list[Tensor]:
    processor = Qwen2VLImageProcessorPil(patch_size=14, merge_size=2, min_pixels=28 * 28, max_pixels=448 * 448)
    made = []
    for seed, (rows, columns) in enumerate(grids):
        pixels = np.random.default_rng(seed).integers(0, 255, (14 * rows, 14 * columns, 3), dtype=np.uint8)
        batch = processor([Image.fromarray(pixels)], return_tensors="pt")
        assert batch["image_grid_thw"].tolist() == [[1, rows, columns]]
        made.append(batch["pixel_values"])
    return made


def stock(visual: torch.nn.Module, patches: Sequence[Tensor], grids: Sequence[Grid]) -> list[Tensor]:
    """Each picture alone through transformers' own path, window after window."""
    visual.config._attn_implementation = "sdpa"
    return [
        visual(one.double(), grid_thw=torch.tensor([[1, *grid]])).pooler_output
        for one, grid in zip(patches, grids, strict=True)
    ]


@contextmanager
def attention_calls() -> Iterator[list[tuple[int, ...]]]:
    """Shapes (batch, heads, length, width) of the queries of every call."""
    calls: list[tuple[int, ...]] = []
    own = F.scaled_dot_product_attention

    def noted(query: Tensor, *rest: object, **named: object) -> Tensor:
        calls.append(tuple(query.shape))
        return own(query, *rest, **named)

    with mock.patch.object(F, "scaled_dot_product_attention", noted):
        yield calls


@pytest.mark.parametrize("kind", ["windows", "whole"])
@pytest.mark.parametrize(
    "grids",
    [[RAGGED], [RAGGED, RAGGED, RAGGED], [TALL, SQUARE, RAGGED, TALL, EVEN], [EVEN, EVEN]],
    ids=["one", "equal", "mixed", "even"],
)
def test_pictures_packed_give_what_the_stock_tower_gives_for_each(kind: str, grids: list[Grid]) -> None:
    visual, patches = tower(kind), patches_of(grids)
    expected = stock(visual, patches, grids)
    found = PackedVision(visual)(patches, grids)
    assert len(found) == len(grids)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-12, rtol=1e-12)


def test_windows_of_one_length_are_one_call() -> None:
    visual = tower("windows")
    see = PackedVision(visual)
    with attention_calls() as even:
        see(patches_of([EVEN]), [EVEN])
    assert even == [(6, 2, 16, 16), (1, 2, 96, 16)]  # six windows of 4 x 4, then the picture
    with attention_calls() as ragged:
        see(patches_of([RAGGED]), [RAGGED])
    # 4 x 4 twice; cut at the right, at the bottom (twice), and at both
    assert ragged == [(1, 2, 4, 16), (3, 2, 8, 16), (2, 2, 16, 16), (1, 2, 60, 16)]


def test_more_pictures_are_no_more_calls() -> None:
    see = PackedVision(tower("windows"))
    with attention_calls() as calls:
        see(patches_of([RAGGED] * 5), [RAGGED] * 5)
    assert calls == [(5, 2, 4, 16), (15, 2, 8, 16), (10, 2, 16, 16), (5, 2, 60, 16)]
    with attention_calls() as mixed:
        see(patches_of([RAGGED, EVEN, RAGGED]), [RAGGED, EVEN, RAGGED])
    assert mixed == [(2, 2, 4, 16), (6, 2, 8, 16), (10, 2, 16, 16), (2, 2, 60, 16), (1, 2, 96, 16)]
    with attention_calls() as whole:
        PackedVision(tower("whole"))(patches_of([RAGGED, EVEN, RAGGED]), [RAGGED, EVEN, RAGGED])
    assert whole == 2 * [(2, 2, 60, 16), (1, 2, 96, 16)]
