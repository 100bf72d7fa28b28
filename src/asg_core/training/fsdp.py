"""FSDP2 for a frozen base that does not fit one device: each device keeps a part of every layer.

A layer is gathered when it runs and dropped afterwards, in the backward pass too. Adapters stay whole on every device.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard

from asg_core.backbones.interface import Backbone, Role
from asg_core.errors import ConfigError


def shard_base(backbone: Backbone, device: torch.device, count: int) -> None:
    """Split the layers of ``backbone`` over ``count`` processes and put the rest on ``device``.

    Outputs and gradients stay what they were. From here on every process must run the same forward passes.

    Args:
        backbone: loaded on the CPU or on ``device``, alike in every process.

    Raises:
        ConfigError: the backbone does not say which layers can be split, or decodes by compiled passes.
    """
    if backbone.runs_compiled:
        raise ConfigError(
            "backbone_options.compile_decode=true does not go with FSDP",
            "a compiled pass would use weights that are gathered for one layer at a time and dropped again",
            "set backbone_options.compile_decode=false",
        )
    found = backbone.shardable()
    if found is None:
        raise ConfigError(
            f"the base of {backbone.manifest.name!r} cannot be split over devices",
            "the backbone does not say which of its layers can be",
            "launch without FSDP: every process then holds the whole base",
        )
    model, layers = found
    adapters = {parameter for role in Role for parameter in backbone.trainable(role).values()}
    mesh = init_device_mesh(device.type, (count,))
    for layer in layers:
        own = {parameter for parameter in layer.parameters() if parameter in adapters}
        fully_shard(layer, mesh=mesh, ignored_params=own, reshard_after_forward=True)  # each layer is a root
        _gather_for_backward(layer, adapters)
    model.to(device)


def _gather_for_backward(layer: nn.Module, adapters: Collection[nn.Parameter]) -> None:
    """FSDP gathers a layer when the gradient of its output arrives. Gradients also arrive through the keys and values
    that a layer leaves in a cache, so each part of the layer with frozen weights gathers them when its turn comes."""
    if not isinstance(layer, FSDPModule):
        raise TypeError(f"{type(layer).__name__} was not sharded")

    def gather(_: Tensor) -> None:
        layer.unshard()
        torch.autograd.Variable._execution_engine.queue_callback(layer.reshard)

    def watch(_module: nn.Module, _inputs: Any, output: Any) -> None:
        if isinstance(output, Tensor) and output.requires_grad:
            output.register_hook(gather)  # type: ignore[no-untyped-call]

    for part in layer.modules():
        if any(parameter not in adapters for parameter in part.parameters(recurse=False)):
            part.register_forward_hook(watch)
