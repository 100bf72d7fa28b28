"""Vision features by image object, so that the vision tower runs once per image and not once per call."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

import torch
from PIL.Image import Image

T = TypeVar("T")


def watch(image: Image, forget: Callable[[int], None]) -> weakref.ref[Image]:
    """A reference that calls the bound method ``forget`` with the image's id when the image is gone; keep it."""
    key, method = id(image), weakref.WeakMethod(forget)

    def gone(_: weakref.ref[Image]) -> None:
        if (call := method()) is not None:
            call(key)

    return weakref.ref(image, gone)


class ImageFeatureCache(Generic[T]):
    """Features of live images, one entry per image object; an entry goes when its image does.

    Keyed by identity: PIL images cannot be hashed, and equal pixels are not worth comparing. Keep only what does not
    depend on adapters (a frozen vision tower), and do not draw into an image that has been looked up.
    """

    def __init__(self) -> None:
        self._entries: dict[int, tuple[weakref.ref[Image], T]] = {}

    def lookup(self, images: Sequence[Image], encode: Callable[[list[Image]], Sequence[T]]) -> list[T]:
        """Return features of ``images``, in order.

        Args:
            images: repeated objects are encoded once.
            encode: called at most once, without gradients, with the distinct images not seen before; one item each.
        """
        missing = list({id(image): image for image in images if id(image) not in self._entries}.values())
        if missing:
            with torch.inference_mode(False), torch.no_grad():
                features = encode(missing)
            for image, feature in zip(missing, features, strict=True):
                self._entries[id(image)] = (watch(image, self._forget), feature)
        return [self._entries[id(image)][1] for image in images]

    def _forget(self, key: int) -> None:
        self._entries.pop(key, None)

    def clear(self) -> None:
        """Forget everything, e.g. after the vision tower changed or to free memory."""
        self._entries.clear()

    def __len__(self) -> int:
        return len(self._entries)
