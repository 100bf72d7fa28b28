"""Decode passes as CUDA graphs of the eager kernels, without torch.compile: what is left once launches are free."""

from __future__ import annotations

from collections.abc import Callable, Hashable

import torch
from torch import Tensor

from asg_core.models.decoding.compiled import Pass

WARM = 2
"""Runs before a graph is recorded: libraries choose kernels and workspaces then."""


class Captured:
    """One graph per policy of a pass of fixed shape. Its result is written over by the next pass.

    Args:
        run: the pass. Running it again at the same cursor changes nothing.
        device: of its tensors.
        policy: what else the kernels depend on, e.g. the active role.
    """

    def __init__(self, run: Pass, device: torch.device, policy: Callable[[], Hashable]) -> None:
        self._run, self._device, self._policy = run, device, policy
        self._graphs: dict[Hashable, tuple[torch.cuda.CUDAGraph, Tensor, Tensor]] = {}

    def __call__(self, ids: Tensor) -> Tensor:
        """(B,) long -> (B, D)."""
        if self._device.type != "cuda":
            return self._run(ids)
        policy = self._policy()
        if policy not in self._graphs:
            self._graphs[policy] = self._record(ids)
        graph, taken, hidden = self._graphs[policy]
        taken.copy_(ids)
        graph.replay()
        return hidden

    def _record(self, ids: Tensor) -> tuple[torch.cuda.CUDAGraph, Tensor, Tensor]:
        taken = ids.clone()
        side = torch.cuda.Stream(self._device)
        side.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(side):
            for _ in range(WARM):
                self._run(taken)
        torch.cuda.current_stream(self._device).wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            hidden = self._run(taken)
        return graph, taken, hidden
