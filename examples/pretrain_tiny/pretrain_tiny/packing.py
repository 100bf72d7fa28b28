"""Rows that hold several independent continuations of one prefix, so that pre-training pays for a picture once.

Segment 0 of a row is the prefix. Every other segment sees the prefix and itself and has positions as if it stood alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Branch:
    """One continuation: token ids, and from which index on they are to be predicted."""

    ids: Sequence[int]
    learn_from: int


@dataclass(frozen=True)
class Packed:
    """Branches of all rows after their prefixes. Shapes (B, L); L counts branch tokens only.

    Attributes:
        ids: token ids, 0 where padded.
        positions: rotary positions.
        targets: id of the *next* token of the same branch where it is to be learnt, else -100.
        mask: (B, 1, P + L, P + L) bool, True where the query (row) sees the key (column).
    """

    ids: Tensor
    positions: Tensor
    targets: Tensor
    mask: Tensor


def pack(rows: Sequence[Sequence[Branch]], prefix: int, prefix_full_from: int) -> Packed:
    """Lay the branches of each row out after a prefix of ``prefix`` tokens.

    Args:
        rows: branches per row.
        prefix: P, tokens of the shared prefix, the same for all rows.
        prefix_full_from: prefix tokens from here on see each other both ways (a picture); before, causal.
    """
    length = max(sum(len(branch.ids) for branch in row) for row in rows)
    ids = torch.zeros(len(rows), length, dtype=torch.long)
    positions = torch.zeros(len(rows), length, dtype=torch.long)
    targets = torch.full((len(rows), length), -100, dtype=torch.long)
    segments = torch.full((len(rows), prefix + length), -1, dtype=torch.long)
    segments[:, :prefix] = 0
    for index, row in enumerate(rows):
        start = 0
        for number, branch in enumerate(row, 1):
            end = start + len(branch.ids)
            ids[index, start:end] = torch.tensor(branch.ids)
            positions[index, start:end] = torch.arange(prefix, prefix + len(branch.ids))
            targets[index, start + branch.learn_from - 1 : end - 1] = ids[index, start + branch.learn_from : end]
            segments[index, prefix + start : prefix + end] = number
            start = end
    total = prefix + length
    allowed = torch.ones(total, total, dtype=torch.bool).tril()
    allowed[prefix_full_from:prefix, prefix_full_from:prefix] = True
    same = (segments[:, :, None] == segments[:, None, :]) | (segments[:, None, :] == 0)
    return Packed(ids, positions, targets, (same & allowed)[:, None])
