"""Cache layers for a prefix tree: branching without detaching, and in-place growth while decoding."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import Cache
from transformers.cache_utils import DynamicLayer

from asg_core.errors import PluginError
from asg_core.models.limits import CACHE_GROWTH

_again: ContextVar[bool] = ContextVar("_again", default=False)


@contextmanager
def running_again() -> Iterator[None]:
    """Inside, layers run whose keys and values are in their caches already (gradient checkpointing)."""
    token = _again.set(True)
    try:
        yield
    finally:
        _again.reset(token)


class BranchLayer(DynamicLayer):  # type: ignore[misc]
    """One layer of a branch: a fixed past, to which the branch's own positions are appended out of place.

    ``update`` appends to the past and not to its own last result, so running a layer again (gradient checkpointing)
    gives the same keys and values again; inside :func:`running_again` it does not keep them, because with them it would
    keep what they were computed from, of all layers until the backward pass ends. The past keeps its autograd graph.
    """

    def __init__(self, past: tuple[Tensor, Tensor] | None = None) -> None:
        super().__init__()
        self.past = past
        if past is not None:
            self.keys, self.values = past
            self.is_initialized = True

    def update(self, keys: Tensor, values: Tensor, *args: object, **kwargs: object) -> tuple[Tensor, Tensor]:
        """(B, H, L, d) new states -> (B, H, S, d) past and new states."""
        if self.past is not None:
            keys = torch.cat([self.past[0], keys], dim=-2)
            values = torch.cat([self.past[1], values], dim=-2)
        if not _again.get():
            self.keys, self.values = keys, values
            self.is_initialized = True
        return keys, values

    def release(self) -> None:
        """Let go of all states; nothing can be appended any more."""
        self.past = None
        self.keys = self.values = self.keys.new_empty(0)


class GrowingLayer(DynamicLayer):  # type: ignore[misc]
    """One layer while decoding without gradients: new positions are written in place into spare room.

    Appending by concatenation copies the whole cache for every token.
    """

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        super().__init__()
        self.length = keys.shape[-2]
        self._reserve(keys, values)
        self.is_initialized = True

    def _reserve(self, keys: Tensor, values: Tensor) -> None:
        self._key_room, self._value_room = (pad(states, (0, 0, 0, CACHE_GROWTH)) for states in (keys, values))
        self._expose()

    def _expose(self) -> None:
        self.keys, self.values = self._key_room[:, :, : self.length], self._value_room[:, :, : self.length]

    def update(self, keys: Tensor, values: Tensor, *args: object, **kwargs: object) -> tuple[Tensor, Tensor]:
        """(B, H, L, d) new states -> (B, H, S, d) past and new states."""
        start, self.length = self.length, self.length + keys.shape[-2]
        if self.length > self._key_room.shape[-2]:
            self._reserve(self.keys, self.values)
        self._key_room[:, :, start : self.length] = keys
        self._value_room[:, :, start : self.length] = values
        self._expose()
        return self.keys, self.values

    def release(self) -> None:
        """Let go of all states; nothing can be appended any more."""
        self.keys = self.values = self._key_room = self._value_room = self.keys.new_empty(0)


def root(cache: Cache) -> Cache:
    """Make an empty cache of a model the root of a tree. Raises PluginError if it is not empty or has other than plain
    dynamic layers: sliding windows, static buffers, recurrent states cannot be branched by row, masked by position."""
    kinds = {type(layer) for layer in cache.layers}
    if cache.layer_class_to_replicate is not None:
        kinds.add(cache.layer_class_to_replicate)
        cache.layer_class_to_replicate = BranchLayer
    if kinds != {DynamicLayer} or any(layer.is_initialized for layer in cache.layers):
        raise PluginError(
            f"new_cache() returned layers {sorted(kind.__name__ for kind in kinds)}, not empty DynamicLayers",
            "the prefix tree branches plain dynamic layers by row and masks them by position",
            "return transformers.DynamicCache() from new_cache(); sliding-window models are not supported",
        )
    cache.layers = [BranchLayer() for _ in cache.layers]
    return cache


def branch(cache: Cache, rows: Tensor | None, *, growing: bool = False) -> Cache:
    """A new cache whose row i continues row ``rows[i]`` of ``cache``, gradients included.

    Args:
        cache: left as it is, unless ``growing``.
        rows: (B,) long, or None for all rows in order.
        growing: True gives layers that grow in place, and lets go of those of ``cache`` one by one, so that long
            prefixes are never there twice; only without gradients.
    """
    forked = copy.copy(cache)
    forked.layers = []
    for layer in cache.layers:
        if not layer.is_initialized:
            forked.layers.append(BranchLayer())
            continue
        keys, values = layer.keys, layer.values
        if growing:
            layer.release()
        if rows is not None:
            keys, values = keys.index_select(0, rows), values.index_select(0, rows)
        forked.layers.append(GrowingLayer(keys, values) if growing else BranchLayer((keys, values)))
    return forked
