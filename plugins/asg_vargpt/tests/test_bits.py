"""From logits to bits."""

from __future__ import annotations

import torch
from asg_vargpt.sampling import draw_bits, filtered_logits


def _logits(*probabilities: float) -> torch.Tensor:
    """Logits of bits that are 1 with these probabilities."""
    return torch.tensor([[1 - p, p] for p in probabilities]).log()


def _probabilities(logits: torch.Tensor) -> list[float]:
    return [round(p, 4) for p in logits.softmax(-1)[:, 1].tolist()]


def test_top_p_rules_out_a_value_of_at_most_1_minus_p() -> None:
    logits = _logits(0.02, 0.031, 0.5, 0.969, 0.98)
    assert _probabilities(filtered_logits(logits, 900, 0.97)) == [0.0, 0.031, 0.5, 0.969, 1.0]
    assert _probabilities(filtered_logits(logits, 900, 1.0)) == [0.02, 0.031, 0.5, 0.969, 0.98]
    assert _probabilities(filtered_logits(_logits(0.3, 0.45), 900, 0.6)) == [0.0, 0.45]


def test_top_k_matters_only_at_1() -> None:
    logits = _logits(0.3, 0.6)
    assert _probabilities(filtered_logits(logits, 1, 1.0)) == [0.0, 1.0]
    for top_k in (0, 2, 900):
        assert _probabilities(filtered_logits(logits, top_k, 1.0)) == [0.3, 0.6]


def test_draws_follow_the_probabilities() -> None:
    logits = _logits(0.2, 0.9).repeat(20_000, 1).view(1, 20_000, 2, 2)
    bits = draw_bits(logits, [torch.Generator().manual_seed(0)])[0].float().mean(0)
    assert torch.allclose(bits, torch.tensor([0.2, 0.9]), atol=0.01)


def test_an_image_draws_from_its_own_stream() -> None:
    logits = torch.randn(3, 50, 4, 2, generator=torch.Generator().manual_seed(0))
    together = draw_bits(logits, [torch.Generator().manual_seed(seed) for seed in (5, 6, 7)])
    alone = draw_bits(logits[1:2], [torch.Generator().manual_seed(6)])
    assert torch.equal(together[1], alone[0])
