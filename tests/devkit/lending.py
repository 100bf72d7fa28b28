"""Backbones that are loaded once and handed from test to test as if each had loaded its own."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from asg_core.backbones.interface import Backbone, Role


@dataclass
class _Loaded:
    """A backbone as it was after loading."""

    backbone: Any
    adapters: dict[Role, dict[str, Tensor]]
    attributes: dict[str, Any]
    versions: dict[str, int]
    lent: bool = False


@dataclass
class Library:
    """Lends backbones: ``with library.lend(key, load) as backbone``.

    Given back, a backbone gets the adapter tensors it was loaded with, loses gradients and every attribute that was set
    on it. One whose frozen base was written to, or that came back while another test held it, is loaded anew.
    """

    _shelf: dict[Hashable, _Loaded] = field(default_factory=dict)

    @contextmanager
    def lend(self, key: Hashable, load: Callable[[], Backbone]) -> Iterator[Any]:
        """The backbone that ``load`` makes, as it was made; loaded where none is kept under ``key``."""
        kept = self._shelf.get(key)
        if kept is None or kept.lent:
            kept = self._shelf[key] = _recorded(load())
        kept.lent = True
        try:
            yield kept.backbone
        finally:
            kept.lent = False
            _restore(kept)
            if _base_versions(kept.backbone) != kept.versions:
                self._shelf.pop(key, None)


def _recorded(backbone: Backbone) -> _Loaded:
    adapters = {role: {name: w.detach().clone() for name, w in _adapter(backbone, role).items()} for role in Role}
    return _Loaded(backbone, adapters, dict(vars(backbone)), _base_versions(backbone))


def _restore(kept: _Loaded) -> None:
    vars(kept.backbone).clear()
    vars(kept.backbone).update(kept.attributes)
    for role in Role:
        for name, weight in _adapter(kept.backbone, role).items():
            weight.grad = None
            if not torch.equal(weight, kept.adapters[role][name]):
                with torch.no_grad():
                    weight.copy_(kept.adapters[role][name])


def _adapter(backbone: Backbone, role: Role) -> dict[str, nn.Parameter]:
    can = backbone.manifest.capabilities
    has = can.image_loss is not None if role is Role.GENERATOR else can.text
    return dict(backbone.trainable(role)) if has else {}


def _base_versions(backbone: Backbone) -> dict[str, int]:
    """How often each frozen tensor of the networks that the backbone holds was written to."""
    owners = [backbone, getattr(backbone, "text", None)]
    held = [module for owner in owners for module in vars(owner or object).values() if isinstance(module, nn.Module)]
    tensors = [
        (f"{i}.{name}", t) for i, m in enumerate(held) for name, t in (*m.named_parameters(), *m.named_buffers())
    ]
    return {name: t._version for name, t in tensors if not t.requires_grad}
