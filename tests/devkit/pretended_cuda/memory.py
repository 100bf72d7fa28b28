"""Bytes of the device: every storage is a block, alive as long as a tensor or a saved tensor of autograd is."""

from __future__ import annotations

from dataclasses import dataclass

ROUND = 512
"""The caching allocator hands out multiples of this many bytes."""


@dataclass
class Memory:
    """What is alive, and the most that was since the peak was last set.

    Attributes:
        total: bytes that the device has.
    """

    total: int
    live: int = 0
    peak: int = 0

    def allocate(self, size: int) -> Block:
        """A block of ``size`` bytes, rounded up. Raises torch.OutOfMemoryError if they are not there."""
        return Block(self, -(-size // ROUND) * ROUND)


class Block:
    """A storage; it goes when nobody holds it any more."""

    __slots__ = ("_memory", "size")

    def __init__(self, memory: Memory, size: int) -> None:
        self._memory, self.size = memory, 0
        if memory.live + size > memory.total:
            import torch

            gib = 2**30
            raise torch.OutOfMemoryError(
                f"CUDA out of memory (pretended): {size / gib:.2f} GiB asked for, {memory.live / gib:.2f} of "
                f"{memory.total / gib:.2f} GiB are taken"
            )
        self.size = size
        memory.live += size
        if memory.live > memory.peak:
            memory.peak = memory.live

    def __del__(self) -> None:
        self._memory.live -= self.size
