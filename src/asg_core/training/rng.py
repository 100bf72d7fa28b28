"""The global random generators of python, numpy and torch. Nothing of ours draws from them, but a plugin may."""

from __future__ import annotations

import base64
import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor


def random_state() -> dict[str, Any]:
    """The states of all global generators now, as JSON data."""
    name, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)  # noqa: NPY002 - see above
    return {
        "python": random.getstate(),
        "numpy": [name, np.asarray(keys).tolist(), position, has_gauss, gauss],
        "torch": _text(torch.get_rng_state()),
        "cuda": [_text(state) for state in torch.cuda.get_rng_state_all()] if torch.cuda.is_available() else [],
    }


def set_random_state(state: Mapping[str, Any]) -> None:
    """Set what :func:`random_state` gave, also after a round trip through JSON. ValueError and others if it is not."""
    name, keys, position, has_gauss, cached = state["numpy"]
    words = np.array(keys, dtype=np.uint32)
    if words.shape != (624,) or type(position) is not int or not 0 <= position <= 624:
        raise ValueError("not a state of numpy's generator")  # numpy itself does not look
    version, internal, gauss = state["python"]
    torch.set_rng_state(_bytes(state["torch"]))
    for device, saved in enumerate(state["cuda"][: torch.cuda.device_count()]):
        torch.cuda.set_rng_state(_bytes(saved), device)
    random.setstate((version, tuple(internal), gauss))
    np.random.set_state((name, words, position, has_gauss, cached))  # noqa: NPY002


def _text(state: Tensor) -> str:
    return base64.b64encode(state.numpy().tobytes()).decode()


def _bytes(text: str) -> Tensor:
    return torch.frombuffer(bytearray(base64.b64decode(text)), dtype=torch.uint8)
