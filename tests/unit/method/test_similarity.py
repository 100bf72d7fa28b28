"""Cycle score and diversity: real image dependence, absolute scales, NaN stays visible."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from asg_core.method.rewards import cycle_score, diversity, unit_similarity

E1, E2, E3 = torch.eye(3)


def unit(seed: int, n: int = 1, d: int = 16) -> Tensor:
    vectors = torch.randn(n, d, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(vectors, dim=-1)


def test_similarity_maps_the_cosine_to_zero_one() -> None:
    assert unit_similarity(E1, E1) == 1.0
    assert unit_similarity(E1, E2) == pytest.approx(0.5)
    assert unit_similarity(E1, -E1) == 0.0
    assert unit_similarity(E1, (E1 + E2) / math.sqrt(2)) == pytest.approx((1 + math.sqrt(0.5)) / 2)


def test_similarity_is_symmetric_and_matches_the_cosine() -> None:
    for seed in range(5):
        a, b = unit(seed, 2)
        assert unit_similarity(a, b) == unit_similarity(b, a)
        assert unit_similarity(a, b) == pytest.approx((1 + float(a.double() @ b.double())) / 2, abs=1e-6)


def test_similarity_of_equal_vectors_is_exactly_one() -> None:
    for seed in range(20):
        assert unit_similarity(unit(seed)[0], unit(seed)[0].clone()) == 1.0


def test_cycle_score_by_hand() -> None:
    assert cycle_score(prompt=E1, caption=E1, image=E2) == pytest.approx(0.5 * 1.0 + 0.5 * 0.5)
    assert cycle_score(prompt=E1, caption=E2, image=E1) == pytest.approx(0.5 * 0.5 + 0.5 * 1.0)
    assert cycle_score(prompt=E1, caption=-E1, image=-E1) == 0.0


def test_cycle_score_changes_when_the_image_changes() -> None:
    near = cycle_score(prompt=E1, caption=E1, image=(2 * E1 + E2) / math.sqrt(5))
    far = cycle_score(prompt=E1, caption=E1, image=(E1 + 2 * E2) / math.sqrt(5))
    assert near - far == pytest.approx(0.25 * (2 - 1) / math.sqrt(5))


def test_cycle_score_changes_when_the_caption_changes() -> None:
    assert cycle_score(prompt=E1, caption=E1, image=E3) > cycle_score(prompt=E1, caption=E2, image=E3)


def test_diversity_of_identical_candidates_is_exactly_zero() -> None:
    for seed in range(10):
        assert diversity(unit(seed).expand(3, -1)) == [0.0, 0.0, 0.0]


def test_diversity_is_absolute() -> None:
    base = unit(0).double()
    noisy = base + 1e-7 * torch.randn(3, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert max(diversity(noisy)) < 1e-12


def test_diversity_by_hand() -> None:
    assert diversity(torch.stack([E1, E2, -E1])) == pytest.approx([0.75, 0.5, 0.75])
    assert diversity(torch.stack([E1, E1, E2])) == pytest.approx([0.25, 0.25, 0.5])
    assert diversity(torch.stack([E1, -E1])) == [1.0, 1.0]


def test_one_candidate_differs_from_nothing() -> None:
    assert diversity(E1[None]) == [0.0]
    assert diversity(torch.empty(0, 3)) == []


def test_a_broken_embedding_is_not_hidden() -> None:
    for broken in (torch.full((3,), math.nan), torch.zeros(3)):
        assert math.isnan(unit_similarity(E1, broken))
        assert math.isnan(cycle_score(E1, E1, broken))
        assert all(math.isnan(value) for value in diversity(torch.stack([E1, broken])))


def test_scores_of_half_precision_embeddings_stay_in_range() -> None:
    vectors = unit(3, 8).bfloat16()
    assert all(0.0 <= value <= 1.0 for value in diversity(vectors))
    assert unit_similarity(vectors[0], vectors[0]) == 1.0
