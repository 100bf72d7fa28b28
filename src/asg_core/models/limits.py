"""Sizes in which backbones decode and score. Imports no torch, because plans count with them."""

from __future__ import annotations

CACHE_GROWTH = 64
"""Positions that a growing row of a cache gets in reserve."""

FEW_SAMPLES = 4
"""Samples per prompt up to which a prompt is rather read again than in a pass of its own."""

VOCABULARY_ROWS = 128
"""Rows of a vocabulary-wide tensor at a time; 128 rows of 150,000 float32 logits are 77 MB."""


def slots_size(rows: int, length: int) -> tuple[int, int]:
    """Rows and positions of the static slots for so many rows of so many positions each.

    Rows are a power of two. Between a power of two and the next there are four lengths, none nearer than 64 to another:
    more rounding is more to attend to in vain, less is more compiled programs.

    >>> [slots_size(n, n) for n in (1, 64, 65, 500, 1025)]
    [(1, 64), (64, 64), (128, 128), (512, 512), (2048, 1280)]
    """
    step = max(64, (1 << length.bit_length()) >> 3)
    return 1 << (rows - 1).bit_length(), -(-length // step) * step
