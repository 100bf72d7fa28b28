"""Images as bits per scale."""

from __future__ import annotations

import torch
from asg_vargpt.quantizer import Accumulator, codes, encode, inputs_of
from asg_vargpt.scales import Schedule, schedule

TWO = Schedule(((1, 1), (2, 2)), (64, 64))


def test_codes_lie_on_the_unit_sphere() -> None:
    bits = torch.tensor([[0, 1, 1, 0]], dtype=torch.uint8)
    assert torch.equal(codes(bits), torch.tensor([[-0.5, 0.5, 0.5, -0.5]]))


def test_two_scales_by_hand() -> None:
    features = torch.tensor([[[[3.0, 1.0], [1.0, -1.0]]]])
    made = encode(features, TWO)
    # scale 0: mean 1 -> bit 1 -> code +1 everywhere; scale 1: 3-1, 1-1 (zero is bit 0), 1-1, -1-1
    assert made.labels.flatten().tolist() == [1, 1, 0, 0, 0]
    assert made.inputs.flatten().tolist() == [1.0] * 4
    assert made.latent.flatten().tolist() == [2.0, 0.0, 0.0, 0.0]


def test_labels_follow_the_residual_of_what_was_fed_back() -> None:
    features = torch.tensor([[[[3.0, 1.0], [1.0, -1.0]]]])
    flipped = torch.tensor([[[0], [1], [0], [0], [0]]], dtype=torch.uint8)
    made = encode(features, TWO, flipped)
    # scale 0 was flipped to -1, so that the residual is 4, 2, 2, 0
    assert made.labels.flatten().tolist() == [1, 1, 1, 1, 0]
    assert made.fed_back is flipped


def test_inputs_of_bits_are_those_of_encoding_for_any_shape() -> None:
    plan = schedule(2.5, "0.06M")
    features = torch.randn(2, 6, *plan.grids[-1], generator=torch.Generator().manual_seed(0))
    made = encode(features, plan)
    assert torch.equal(inputs_of(made.labels, plan), made.inputs)
    assert made.inputs.shape == (2, plan.positions - 1, 6)


def test_every_scale_brings_the_latent_nearer() -> None:
    plan = schedule(1.0, "0.06M")
    code = torch.randn(1, 8, 16, 16, generator=torch.Generator().manual_seed(0))
    features = code / code.norm(dim=1, keepdim=True)
    made = encode(features, plan)
    accumulator = Accumulator(plan, 1, 8, features.device)
    errors = []
    for scale, bits in enumerate(torch.split(made.labels, plan.lengths, dim=1)):
        accumulator.add(scale, bits)
        errors.append(float((features - accumulator.total).square().mean()))
    assert errors[-1] < 0.6 * errors[0]
    assert torch.equal(accumulator.total, made.latent)
