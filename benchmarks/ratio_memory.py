"""What the solver update keeps for its backward pass, and what a step leaves behind."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import torch

from asg_core.backbones.interface import Role, TextSample
from asg_core.method.updates import solver_groups
from asg_core.testing.qwen import QwenBackbone
from ratio_rows import Row
from ratio_subject import Subject, picture


def saved_bytes(run: Callable[[], Any]) -> int:
    """Bytes of distinct storages that autograd keeps for the backward pass of what ``run`` computes."""
    seen: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        seen[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor.detach()  # the tensor itself would be a cycle that nothing collects

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = run()
    total = sum(storage.nbytes() for storage in seen.values())
    del result
    return total


def live_bytes() -> int:
    """Bytes of all tensors that are alive."""
    gc.collect()
    found = (o for o in gc.get_objects() if type(o) in (torch.Tensor, torch.nn.Parameter))
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in found}
    return sum(storages.values())


def memory() -> list[Row]:
    """Activations of the solver update against the unshared batch, and what is left after a step."""
    ours = Subject(QwenBackbone)
    rows = []
    for side, tokens in ((224, 64), (448, 256)):
        samples = [s for group in solver_groups(ours.sampled([picture(1, side)])) for s, _ in group.samples]
        alone = [
            TextSample(**{**vars(s), "request": type(s.request)(s.request.prompt, s.request.image.copy(), 0)})
            for s in samples
            if s.request.image is not None
        ]
        shared, unshared = (
            saved_bytes(lambda batch=batch: ours.backbone.token_logits(batch, Role.SOLVER, base=True))
            for batch in (samples, alone)
        )
        share = shared / unshared
        value = f"{share:.2f}x ({shared / 2**20:.1f} of {unshared / 2**20:.1f} MiB)"
        bar = "<= 0.65x" if tokens == 64 else ""
        rows.append(Row(f"saved activations of the solver update, {tokens} image tokens", value, bar, share <= 0.65))
        ours.reset()
    ours.step([picture(1, 224)])
    before = live_bytes()
    ours.step([picture(2, 224)])
    after = live_bytes()
    change = after / before - 1
    rows.append(
        Row("live tensor bytes after a step", f"{change:+.2%} of {before / 2**20:.1f} MiB", "±1 %", abs(change) <= 0.01)
    )
    return rows
