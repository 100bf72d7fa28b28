"""A backbone that passes every call on to another: the start of one that changes some of them."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from operator import attrgetter
from typing import Any, TypeVar, cast

from asg_core.backbones.interface import Backbone

_Method = TypeVar("_Method", bound=Callable[..., Any])


def _passed_on(method: _Method) -> _Method:
    """The same method of ``inner``, as a method of the proxy."""

    @wraps(method, updated=())  # not its __dict__, which says that it is abstract
    def call(proxy: BackboneProxy, *args: Any, **kwargs: Any) -> Any:
        return getattr(proxy.inner, method.__name__)(*args, **kwargs)

    return cast(_Method, call)


class BackboneProxy(Backbone):
    """Passes every call on to ``inner``; subclass it to change some."""

    def __init__(self, inner: Backbone) -> None:
        self.inner = inner
        self.manifest = inner.manifest

    device: Any = property(attrgetter("inner.device"))
    dtype: Any = property(attrgetter("inner.dtype"))
    runs_compiled: Any = property(attrgetter("inner.runs_compiled"))
    ask = _passed_on(Backbone.ask)
    solve = _passed_on(Backbone.solve)
    token_logits = _passed_on(Backbone.token_logits)
    generate = _passed_on(Backbone.generate)
    generation_loss = _passed_on(Backbone.generation_loss)
    embed = _passed_on(Backbone.embed)
    prefill = _passed_on(Backbone.prefill)
    release_memory = _passed_on(Backbone.release_memory)
    as_drawn = _passed_on(Backbone.as_drawn)
    shardable = _passed_on(Backbone.shardable)
    trainable = _passed_on(Backbone.trainable)
    save_role = _passed_on(Backbone.save_role)
    load_role = _passed_on(Backbone.load_role)
