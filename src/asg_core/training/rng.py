"""The global random generators of python, numpy and torch. Nothing of ours draws from them, but a plugin may."""

from __future__ import annotations

import base64
import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

RandomState = tuple[Mapping[str, Tensor], Mapping[str, Any]]
"""The global generators: of torch as tensors by name, of python and numpy as plain JSON data."""


def random_state() -> RandomState:
    """The states of all global generators now."""
    tensors = {"torch": torch.get_rng_state()}
    if torch.cuda.is_available():
        tensors |= {f"cuda-{i}": s for i, s in enumerate(torch.cuda.get_rng_state_all())}
    name, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)  # noqa: NPY002 - see above
    return tensors, {
        "python": random.getstate(),
        "numpy": [name, np.asarray(keys).tolist(), position, has_gauss, gauss],
    }


def set_random_state(state: RandomState) -> None:
    """Set what :func:`random_state` gave, also after a round trip through JSON. ValueError and others if it is not."""
    tensors, scalars = state
    name, keys, position, has_gauss, cached = scalars["numpy"]
    words = np.array(keys, dtype=np.uint32)
    if words.shape != (624,) or type(position) is not int or not 0 <= position <= 624:
        raise ValueError("not a state of numpy's generator")  # numpy itself does not look
    version, internal, gauss = scalars["python"]
    torch.set_rng_state(tensors["torch"])
    if torch.cuda.is_available():
        for i in range(torch.cuda.device_count()):
            if f"cuda-{i}" in tensors:
                torch.cuda.set_rng_state(tensors[f"cuda-{i}"], i)
    random.setstate((version, tuple(internal), gauss))
    np.random.set_state((name, words, position, has_gauss, cached))  # noqa: NPY002


def as_json(state: RandomState) -> dict[str, Any]:
    """``state`` as JSON data, for the other processes of a run."""
    tensors, scalars = state
    return {**scalars, "torch": {k: base64.b64encode(v.numpy().tobytes()).decode() for k, v in tensors.items()}}


def from_json(data: Mapping[str, Any]) -> RandomState:
    """What :func:`as_json` was given. ValueError and others if ``data`` is none of its results."""
    tensors = {k: torch.frombuffer(bytearray(base64.b64decode(v)), dtype=torch.uint8) for k, v in data["torch"].items()}
    return tensors, {"python": data["python"], "numpy": data["numpy"]}
