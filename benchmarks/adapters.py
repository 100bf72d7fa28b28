"""Kernels, bytes and saved activations of a decoder layer's linear layers with adapters; RESULTS.md has the table.

    python benchmarks/adapters.py              prints the table
    python benchmarks/adapters.py --write      and puts it into RESULTS.md

The seven linear layers of one Qwen2.5-7B layer (BAGEL, BLIP3o), bfloat16, rank 16, on the meta device: nothing is
computed, and every operation below autograd is counted with the bytes that it reads and writes. "PEFT" is its own
forward on the same layers, which is what this package ran before.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
from peft.tuners.lora import Linear
from torch import Tensor, nn
from torch.nn.utils import skip_init
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from asg_core.backbones.interface import Role
from asg_core.backbones.manifest import LoraSettings
from asg_core.models.adapted_linear import AdaptedLinear
from asg_core.models.lora import RoleAdapters
from results import machine, write_section

WIDTH, KEYS, MLP = 3584, 512, 18944
SIZES = {"q": (WIDTH, WIDTH), "k": (WIDTH, KEYS), "v": (WIDTH, KEYS), "o": (WIDTH, WIDTH), "gate": (WIDTH, MLP)}
SIZES |= {"up": (WIDTH, MLP), "down": (MLP, WIDTH)}
INPUTS = {"q": "qkv", "k": "qkv", "v": "qkv", "o": "o", "gate": "mlp", "up": "mlp", "down": "down"}
BIASED = "qkv"
WITHOUT_KERNEL = {"empty", "new_empty", "empty_strided", "new_empty_strided", "empty_like", "_unsafe_view", "detach"}


WORDS = """Counted, not timed: the seven linear layers of one
Qwen2.5-7B layer, bfloat16, rank 16, on tensors without content: operations that torch would launch on CUDA and the
bytes that they name. A product added to something out of place counts as two, because CUDA copies first. "PEFT" is its
own forward with float32 adapters, as this package ran it before. Gradients of weights stay as exact as PEFT's
(`tests/model/adapters/test_adapted_linear.py`): what is as thin as the rank is kept as sums of two bfloat16 numbers,
which takes more and smaller kernels in the backward pass, and below about 90 tokens more bytes."""


class Kernels(TorchDispatchMode):
    """Counts operations that compute or copy, and the bytes of what they read and write."""

    def __init__(self) -> None:
        super().__init__()
        self.count = self.bytes = 0

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = op(*args, **(kwargs or {}))
        returned = [one.alias_info for one in op._schema.returns]
        view = any(alias is not None and not alias.is_write for alias in returned)
        if not view and op.overloadpacket.__name__ not in WITHOUT_KERNEL:
            self.count += 1
            used = {id(t): t for t in tree_leaves((args, kwargs, result)) if isinstance(t, Tensor)}.values()
            self.bytes += sum(t.numel() * t.element_size() for t in used)
            if op is torch.ops.aten.addmm.default and args[0].ndim == 2:
                self.count += 1  # on CUDA the sum's first term is copied to where the result will be
                self.bytes += 2 * result.numel() * result.element_size()
        return result


@dataclass(frozen=True)
class Cost:
    """Of a pass through the layer: kernels and bytes forward without grad mode, with it, and backward; bytes saved."""

    forward: tuple[int, int]
    tracked: tuple[int, int]
    backward: tuple[int, int]
    saved: int


def layer() -> tuple[nn.ModuleDict, RoleAdapters]:
    """The linear layers by name, on the meta device, and adapters on them."""
    made = {
        name: skip_init(nn.Linear, *size, bias=name in BIASED, dtype=torch.bfloat16) for name, size in SIZES.items()
    }
    modules = nn.ModuleDict(made)
    adapters = RoleAdapters({"layer": modules}, {role: {"layer": list(SIZES)} for role in Role}, LoraSettings())
    return modules.to("meta"), adapters


def cost(modules: Mapping[str, nn.Module], tokens: int) -> Cost:
    """Of ``tokens`` positions; layers that share an input in the model share it here."""
    given = {
        INPUTS[name]: torch.empty(1, tokens, size[0], device="meta", dtype=torch.bfloat16, requires_grad=True)
        for name, size in SIZES.items()
    }

    def run() -> list[Tensor]:
        return [module(given[INPUTS[name]]) for name, module in modules.items()]

    with torch.no_grad():
        run()  # whatever is made once
        with Kernels() as untracked:
            run()
    with saved() as storages, Kernels() as tracked:
        outputs = run()
    weights = {parameter.untyped_storage()._cdata for module in modules.values() for parameter in module.parameters()}
    kept = sum(size for key, size in storages.items() if key not in weights)
    with Kernels() as backward:
        torch.autograd.backward(outputs, [torch.empty_like(output) for output in outputs])
    for module in modules.values():
        module.zero_grad()
    counts = ((mode.count, mode.bytes) for mode in (untracked, tracked, backward))
    return Cost(*counts, kept)


@contextmanager
def saved() -> Iterator[dict[int, int]]:
    """Bytes of the storages that autograd saves inside the block, by storage."""
    found: dict[int, int] = {}
    alive = []

    def pack(tensor: Tensor) -> Tensor:
        alive.append(tensor)  # so that no address is used twice
        found[tensor.untyped_storage()._cdata] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield found


def compared(tokens: int) -> dict[str, Cost]:
    """Without an adapter, with PEFT's forward, and with ours."""
    modules, adapters = layer()
    ways: dict[str, Callable[..., Tensor]] = {"PEFT": Linear.forward, "ours": AdaptedLinear.forward}
    costs = {"no adapter": cost(modules, tokens)}
    for name, forward in ways.items():
        with patch.object(AdaptedLinear, "forward", forward), adapters.use(Role.SOLVER):
            costs[name] = cost(modules, tokens)
    return costs


def table() -> str:
    """Markdown."""
    lines = [
        "| tokens | adapter | forward, no gradients | forward, with | backward | saved a token |",
        "|---|---|---|---|---|---|",
    ]
    for tokens in (8, 385, 3204):
        for name, one in compared(tokens).items():
            cells = [
                f"{count} kernels, {size / 1e6:.0f} MB" for count, size in (one.forward, one.tracked, one.backward)
            ]
            lines.append(f"| {tokens} | {name} | {' | '.join(cells)} | {one.saved / tokens / 1024:.1f} KiB |")
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="put the table into RESULTS.md")
    found = table()
    print(found)
    if parser.parse_args().write:
        body = f"`python benchmarks/adapters.py --write`, {machine()}. {WORDS}\n\n{found}"
        write_section("Adapters: kernels and bytes of a layer", body)
