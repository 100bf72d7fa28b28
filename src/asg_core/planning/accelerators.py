"""What known devices can do: vendors' dense peak rates, and the share of them that large kernels reach."""

from __future__ import annotations

from dataclasses import dataclass

from asg_core.errors import ConfigError, did_you_mean

COMPUTE_SHARE = 0.8
BANDWIDTH_SHARE = 0.9
"""Shares of the peak that large matrix products and long reads reach in practice; assumed, not measured."""


@dataclass(frozen=True)
class Accelerator:
    """One device model.

    Attributes:
        name: as written after ``--device-name``; part of the name that CUDA reports, but for capitals and blanks.
        flops: dense bfloat16 peak, FLOP/s.
        bandwidth: memory bandwidth, bytes/s.
        memory: bytes.
    """

    name: str
    flops: float
    bandwidth: float
    memory: int

    def is_called(self, reported: str) -> bool:
        """Whether ``reported`` is its name: our own, or what CUDA reports ("NVIDIA H100 80GB HBM3")."""
        return self.name in reported.lower().replace(" ", "")

    def roofline(self, flops: float, read: float) -> float:
        """Seconds that ``flops`` operations on ``read`` bytes take at least, at the reachable rates."""
        return max(flops / (COMPUTE_SHARE * self.flops), read / (BANDWIDTH_SHARE * self.bandwidth))


ACCELERATORS: tuple[Accelerator, ...] = (
    Accelerator("h200", 989e12, 4.8e12, 141 * 10**9),
    Accelerator("h100", 989e12, 3.35e12, 80 * 2**30),
    Accelerator("a100", 312e12, 2.039e12, 80 * 2**30),
    Accelerator("l40s", 362e12, 0.864e12, 48 * 10**9),
    Accelerator("rtx4090", 165e12, 1.008e12, 24 * 2**30),
)
"""SXM variants where there are several. Data sheets quote twice these FLOP/s for sparse matrices."""


def find_accelerator(name: str) -> Accelerator:
    """The device that is called ``name``, by us or by CUDA. Raises ConfigError if it is not in the table."""
    for device in ACCELERATORS:
        if device.is_called(name):
            return device
    names = [device.name for device in ACCELERATORS]
    near = did_you_mean(name.lower(), names)
    raise ConfigError(
        f"device {name!r} is unknown",
        f"rates are known for {', '.join(names)}",
        f"{near} Give the nearest one with --device-name and its memory with --memory-gib.",
    )
