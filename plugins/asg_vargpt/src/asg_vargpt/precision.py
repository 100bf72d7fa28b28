"""Convolutions in float32 as written: on CUDA torch runs them in TF32 by default, which keeps 10 bits of a mantissa."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock

import torch


class _Convolutions:
    """The process's setting, and who needs it off; the first one in remembers it, the last one out puts it back."""

    def __init__(self) -> None:
        self._lock, self._users, self._before = Lock(), 0, ""

    def enter(self) -> None:
        with self._lock:
            if not self._users:
                self._before = self._exchange("ieee")
            self._users += 1

    def leave(self) -> None:
        with self._lock:
            self._users -= 1
            if not self._users:
                self._exchange(self._before)

    @staticmethod
    def _exchange(precision: str) -> str:
        cudnn = torch.backends.cudnn
        if hasattr(cudnn, "conv"):
            before: str = cudnn.conv.fp32_precision
            cudnn.conv.fp32_precision = precision
            return before
        before = "tf32" if cudnn.allow_tf32 else "ieee"  # torch before 2.9
        cudnn.allow_tf32 = precision == "tf32"
        return before


_CONVOLUTIONS = _Convolutions()


@contextmanager
def exact_convolutions() -> Iterator[None]:
    """Inside, float32 convolutions on CUDA are not TF32; afterwards the setting is the caller's again.

    The setting is the process's: another thread's convolutions are exact, too, while this lasts.
    """
    _CONVOLUTIONS.enter()
    try:
        yield
    finally:
        _CONVOLUTIONS.leave()
