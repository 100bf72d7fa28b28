"""Multi-scale binary spherical quantisation: images as bits per scale, and back to the grid that the VAE decodes.

A cell with bits b in {0, 1}^d has the code (2b - 1) / sqrt(d). The sum of all scales, each stretched to the finest
grid, is the VAE's latent. All arithmetic is float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from asg_vargpt.scales import Grid, Schedule


def codes(bits: Tensor) -> Tensor:
    """Bits (..., d) in {0, 1} -> unit vectors (..., d), float32."""
    unit: float = bits.shape[-1] ** -0.5
    return (bits.float() * 2 - 1) * unit


def _resize(grid: Tensor, size: Grid, mode: str) -> Tensor:
    """Resize (B, d, h, w). A third axis of length 1 keeps the arithmetic that of the original, which is for videos."""
    if tuple(grid.shape[-2:]) == size:
        return grid
    align = {"align_corners": False} if mode == "trilinear" else {}
    return F.interpolate(grid.unsqueeze(2), size=(1, *size), mode=mode, **align).squeeze(2)


def to_grid(cells: Tensor, size: Grid) -> Tensor:
    """Row-major cells (B, h*w, d) -> (B, d, h, w)."""
    # Contiguous, so that the order of summation when resizing does not depend on where the cells come from.
    return cells.transpose(1, 2).contiguous().view(cells.shape[0], -1, *size)


def to_cells(grid: Tensor) -> Tensor:
    """(B, d, h, w) -> row-major cells (B, h*w, d)."""
    return grid.flatten(2).transpose(1, 2)


class Accumulator:
    """The sum of the scales drawn so far, on the finest grid.

    Args:
        schedule: of the image.
        batch: images at once.
        bits: d, bits per cell.
        device: where to keep the sum.
    """

    def __init__(self, schedule: Schedule, batch: int, bits: int, device: torch.device) -> None:
        self.schedule = schedule
        self.total = torch.zeros(batch, bits, *schedule.grids[-1], device=device)

    def add(self, scale: int, bits: Tensor) -> None:
        """Add the bits (B, h*w, d) of one scale."""
        grid = to_grid(codes(bits), self.schedule.grids[scale])
        self.total = self.total + _resize(grid, self.schedule.grids[-1], "trilinear")

    def cells_for(self, scale: int) -> Tensor:
        """What the model sees before drawing ``scale`` (> 0): the sum at that scale's size, (B, h*w, d)."""
        return to_cells(_resize(self.total, self.schedule.grids[scale], "trilinear"))


@dataclass(frozen=True, eq=False)
class Encoding:
    """An image as bits.

    Attributes:
        labels: (B, L, d) uint8, the bits of the residual at each scale, all scales one after another.
        fed_back: (B, L, d) uint8, what was accumulated; differs from ``labels`` only where bits were flipped.
        inputs: (B, L - 1, d) float32, what the model sees before each scale but the first.
        latent: (B, d, H, W) float32, the sum of all scales.
    """

    labels: Tensor
    fed_back: Tensor
    inputs: Tensor
    latent: Tensor


def encode(features: Tensor, schedule: Schedule, fed_back: Tensor | None = None) -> Encoding:
    """Quantise encoder features scale by scale, each from what the earlier scales leave over.

    Args:
        features: (B, d, H, W) from the VAE encoder, on the schedule's finest grid.
        schedule: of the image.
        fed_back: (B, L, d) bits to accumulate in place of the labels (bitwise self-correction), or None.
    """
    features = features.float()
    accumulator = Accumulator(schedule, features.shape[0], features.shape[1], features.device)
    labels, inputs = [], []
    forced = None if fed_back is None else torch.split(fed_back, schedule.lengths, dim=1)
    last = len(schedule.grids) - 1
    for scale, size in enumerate(schedule.grids):
        if scale:
            inputs.append(accumulator.cells_for(scale))
        residual = features - accumulator.total
        bits = to_cells(residual if scale == last else _resize(residual, size, "area")) > 0
        labels.append(bits.to(torch.uint8))
        accumulator.add(scale, labels[-1] if forced is None else forced[scale])
    joined = torch.cat(labels, dim=1)
    kept = joined if fed_back is None else fed_back
    return Encoding(joined, kept, _join(inputs, features), accumulator.total)


def inputs_of(bits: Tensor, schedule: Schedule) -> Tensor:
    """What the model saw before each scale but the first while drawing ``bits`` (B, L, d): (B, L - 1, d) float32."""
    accumulator = Accumulator(schedule, bits.shape[0], bits.shape[2], bits.device)
    inputs = []
    for scale, part in enumerate(torch.split(bits, schedule.lengths, dim=1)[:-1]):
        accumulator.add(scale, part)
        inputs.append(accumulator.cells_for(scale + 1))
    return _join(inputs, bits)


def _join(inputs: Sequence[Tensor], like: Tensor) -> Tensor:
    if inputs:
        return torch.cat(list(inputs), dim=1)
    depth = like.shape[-1] if like.dim() == 3 else like.shape[1]
    return torch.zeros(like.shape[0], 0, depth, device=like.device)
