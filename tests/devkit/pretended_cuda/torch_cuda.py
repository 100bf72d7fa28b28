"""What ``torch.cuda`` answers while the device exists."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from importlib import import_module
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from unittest import mock

import torch
import torch._dynamo  # lists the functions of torch.cuda when it is first imported, and must find its own
from torch import Tensor

from devkit.pretended_cuda.tensor import PretendedTensor

if TYPE_CHECKING:
    from devkit.pretended_cuda.card import PretendedCuda

NAME, CAPABILITY = "NVIDIA H100 80GB HBM3", (9, 0)


@contextmanager
def torch_cuda(card: PretendedCuda) -> Iterator[None]:
    """Inside, ``torch.cuda`` knows ``card``."""
    memory = card.memory
    properties = SimpleNamespace(
        name=NAME, major=CAPABILITY[0], minor=CAPABILITY[1], total_memory=memory.total, multi_processor_count=132
    )

    def forget_peak(*_: Any) -> None:
        memory.peak = memory.live

    answers: dict[str, Callable[..., Any]] = {
        "_lazy_init": _nothing,
        "is_available": _always(True),
        "is_initialized": _always(True),
        "is_bf16_supported": _always(True),
        "device_count": _always(1),
        "current_device": _always(0),
        "get_device_name": _always(NAME),
        "get_device_capability": _always(CAPABILITY),
        "get_device_properties": _always(properties),
        "set_device": _nothing,
        "manual_seed": _nothing,
        "manual_seed_all": _nothing,
        "empty_cache": _nothing,
        "synchronize": lambda *_: card.sync(),
        "memory_allocated": lambda *_: memory.live,
        "memory_reserved": lambda *_: memory.live,
        "max_memory_allocated": lambda *_: memory.peak,
        "reset_peak_memory_stats": forget_peak,
        "mem_get_info": lambda *_: (memory.total - memory.live, memory.total),
    }
    overwrote = torch.__future__.get_overwrite_module_params_on_conversion()
    with ExitStack() as patches:
        # a module that is moved makes new parameters: old ones, of the CPU, cannot hold tensors of another class
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        patches.callback(torch.__future__.set_overwrite_module_params_on_conversion, overwrote)
        for name, answer in answers.items():
            patches.enter_context(mock.patch.object(torch.cuda, name, answer))
        for name in ("tensor", "as_tensor"):
            patches.enter_context(mock.patch.object(torch, name, _afterwards(getattr(torch, name))))
        # optimizers take one kernel for many tensors where the tensors are of torch's own classes
        for module in map(import_module, ("torch.optim.optimizer", "torch.utils._foreach_utils")):
            known = [*module._foreach_supported_types, PretendedTensor]
            patches.enter_context(mock.patch.object(module, "_foreach_supported_types", known))
        yield


def _always(value: Any) -> Callable[..., Any]:
    return lambda *_, **__: value


def _nothing(*_: Any, **__: Any) -> None:
    return None


def _afterwards(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """torch fills a new tensor on its device where no mode sees it: it is made on the CPU and sent."""

    def made(*args: Any, device: Any = None, **kwargs: Any) -> Tensor:
        if device is None or torch.device(device).type != "cuda":
            return make(*args, device=device, **kwargs)
        return make(*args, **kwargs).to(device)

    return made
