"""Counter-based randomness: a seed is a pure function of the run seed and a path such as (step, purpose, image, index).

No global generator is ever drawn from, so batching, resuming and the number of processes cannot change a sample.
"""

from __future__ import annotations

import hashlib
from typing import Protocol


class Seed(Protocol):
    """Gives the seed of a path such as ("solve", question, framing): :func:`derive_seed` of a run or a step."""

    def __call__(self, *path: int | str) -> int:
        """Return the seed of ``path``."""


def derive_seed(*path: int | str) -> int:
    """A 63-bit seed from ``path``; equal paths give equal seeds, different paths independent ones.

    Ints and strings are distinguished (``1`` is not ``"1"``).
    """
    digest = hashlib.blake2b("\x1f".join(f"{type(p).__name__}:{p}" for p in path).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
