"""Counting on modules that hold no memory (the meta device): parameters, adapters, FLOPs. For plugins' plan targets."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from peft import LoraConfig
from peft.tuners.tuners_utils import check_target_module_exists
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from asg_core.models.lora import Targets
from asg_core.planning.shape import Part


def part_of(name: str, dtype: torch.dtype, *modules: nn.Module | nn.Parameter) -> Part:
    """Parameters of some modules, loaded in ``dtype``; shared ones count once."""
    found = {
        id(parameter): parameter.numel()
        for module in modules
        for parameter in ([module] if isinstance(module, nn.Parameter) else module.parameters())
    }
    count = sum(found.values())
    return Part(name, count, count * dtype.itemsize)


def matrix_parameters(module: nn.Module) -> int:
    """Numbers in the linear layers of ``module``: each costs two FLOPs per token."""
    return sum(layer.weight.numel() for layer in module.modules() if isinstance(layer, nn.Linear))


def adapter_parameters(module: nn.Module, targets: Targets, rank: int) -> int:
    """Parameters that LoRA of ``rank`` adds to ``module``; targets as for ``RoleAdapters``."""
    config = LoraConfig(r=rank, target_modules=targets if isinstance(targets, str) else list(targets))
    return sum(
        rank * (layer.in_features + layer.out_features)
        for name, layer in module.named_modules()
        if isinstance(layer, nn.Linear) and check_target_module_exists(config, name)
    )


def counted_flops(run: Callable[..., Any], *args: Any, **kwargs: Any) -> float:
    """FLOPs of one call on meta tensors: matrix products, convolutions and attention."""
    with torch.no_grad(), torch.device("meta"), FlopCounterMode(display=False) as counter:
        run(*args, **kwargs)
    return float(counter.get_total_flops())
