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
        name: as written after ``--device-name``.
        title: part of the name that CUDA reports.
        flops: dense bfloat16 peak, FLOP/s.
        bandwidth: memory bandwidth, bytes/s.
        memory: bytes.
    """

    name: str
    title: str
    flops: float
    bandwidth: float
    memory: int

    @property
    def reachable_flops(self) -> float:
        """FLOP/s of large matrix products."""
        return COMPUTE_SHARE * self.flops

    @property
    def reachable_bandwidth(self) -> float:
        """Bytes/s of long reads."""
        return BANDWIDTH_SHARE * self.bandwidth

    def roofline(self, flops: float, read: float) -> float:
        """Seconds that ``flops`` operations on ``read`` bytes take at least, at the reachable rates."""
        return max(flops / self.reachable_flops, read / self.reachable_bandwidth)


ACCELERATORS: tuple[Accelerator, ...] = (
    Accelerator("h200", "H200", 989e12, 4.8e12, 141 * 10**9),
    Accelerator("h100", "H100", 989e12, 3.35e12, 80 * 2**30),
    Accelerator("a100", "A100", 312e12, 2.039e12, 80 * 2**30),
    Accelerator("l40s", "L40S", 362e12, 0.864e12, 48 * 10**9),
    Accelerator("rtx4090", "RTX 4090", 165e12, 1.008e12, 24 * 2**30),
)
"""SXM variants where there are several. Data sheets quote twice these FLOP/s for sparse matrices."""


def find_accelerator(name: str) -> Accelerator:
    """The device called ``name``: our own name for it, or what CUDA reports ("NVIDIA H100 80GB HBM3").

    Raises:
        ConfigError: it is not in the table.
    """
    wanted = name.lower()
    for device in ACCELERATORS:
        if wanted == device.name or device.title.lower() in wanted:
            return device
    names = [device.name for device in ACCELERATORS]
    raise ConfigError(
        f"device {name!r} is unknown",
        f"rates are known for {', '.join(names)}",
        f"{did_you_mean(wanted, names)} Give the nearest one with --device-name and its memory with --memory-gib.",
    )
