"""Prefilled image prefixes that outlive a call: one per image object and adapter version."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from asg_core.models.decoding.feature_cache import watch
from asg_core.models.decoding.prefix_tree import Rows

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True, eq=False)
class _Entry:
    version: tuple[Hashable, ...]
    row_of: dict[int, int]
    rows: Rows
    watched: list[weakref.ref[Image]]


class PrefixCache:
    """Keeps the prefilled rows of images, so that calls on the same images under the same weights share them.

    Within a generation step all that is asked about a candidate shares the Solver's prefixes, within an understanding
    step both updates share those of the base policy. An entry goes when one of its images does, and when its role is
    seen with newer weights. Keep only prefixes without gradients. Memory: keys and values of every live image, per
    role.

    Args:
        version: what the weights are now, equal if and only if nothing has changed; ``RoleAdapters.version``. The first
            element names the role.
    """

    def __init__(self, version: Callable[[], tuple[Hashable, ...]]) -> None:
        self._version = version
        self._entries: list[_Entry] = []

    def find(self, images: Sequence[Image | None]) -> tuple[Rows, list[int]] | None:
        """Return rows that hold the prefixes of ``images``, and the row of each image.

        None if no entry holds all of them under the current weights. Entries of the active role under older ones go.
        """
        version = self._version()
        self._entries = [entry for entry in self._entries if entry.version[0] != version[0] or entry.version == version]
        for entry in self._entries:
            if entry.version == version and all(id(image) in entry.row_of for image in images):
                return entry.rows, [entry.row_of[id(image)] for image in images]
        return None

    def keep(self, images: Sequence[Image | None], rows: Rows, first: int = 0) -> None:
        """Keep ``rows``, which hold the prefixes of ``images`` under the current weights, from row ``first`` on.

        Entries of several roles may share ``rows``, whose memory goes with the last of them.
        """
        row_of = {id(image): row for row, image in enumerate(images, start=first)}
        watched = [watch(image, self._forget) for image in images if image is not None]
        self._entries.append(_Entry(self._version(), row_of, rows, watched))

    def _forget(self, key: int) -> None:
        self._entries = [entry for entry in self._entries if key not in entry.row_of]

    def clear(self) -> None:
        """Forget everything and free its memory."""
        self._entries = []
