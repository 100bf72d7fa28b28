"""The pool of unlabeled images: a folder, searched recursively, decoded on threads, bad files set aside by name.

The order is a seeded permutation per epoch (METHOD, Schedule), so no image is tied to a kind of step, and a cursor is
all that a resume needs.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL.Image import Image

from asg_core.config.seeding import derive_seed
from asg_core.data.image_file import SUFFIXES, open_image, verify_image
from asg_core.errors import CheckpointError, ImageError

VERIFY_UP_TO = 2000
"""Folders of at most this many files are decoded once at the start, so that all bad files are known before training."""


@dataclass(frozen=True, eq=False)
class PoolImage:
    """One image drawn from the pool, RGB, and the file it came from."""

    path: Path
    image: Image


class ImagePool:
    """Unlabeled images of one folder, drawn in a seeded order without end.

    Args:
        folder: searched recursively; links are followed, each directory once; names that start with "." are left out.
        seed: of the permutations.
        on_quarantine: called once per bad file with its path inside the folder and the reason; may be replaced later.

    Attributes:
        files: paths inside the folder with "/" between their parts, sorted by parts, good and bad ones.
        quarantined: bad files found so far and why.

    Raises:
        ImageError: no such folder, or no usable image in it.
    """

    def __init__(
        self, folder: Path, seed: int, on_quarantine: Callable[[Path, str], None] = lambda file, reason: None
    ) -> None:
        self.folder, self.seed, self.on_quarantine = folder, seed, on_quarantine
        self.files = sorted(scan_images(folder), key=lambda file: file.split("/"))
        names = "\n".join(self.files).encode("utf-8", "surrogateescape")
        self._fingerprint = hashlib.blake2b(names, digest_size=8).hexdigest()
        self.quarantined: dict[str, str] = {}
        self._epoch = self._position = 0
        self._order = self.order(0)
        self._threads = ThreadPoolExecutor(min(8, os.cpu_count() or 1), "images")
        self._ahead: dict[str, Future[Image]] = {}
        if len(self.files) <= VERIFY_UP_TO:
            checks = {file: self._threads.submit(verify_image, folder / file) for file in self.files}
            for file, check in checks.items():
                try:
                    check.result()
                except ImageError as error:
                    self._set_aside(file, error.why)
        self._check_usable()

    def __len__(self) -> int:
        """Number of files not known to be bad."""
        return len(self.files) - len(self.quarantined)

    def order(self, epoch: int) -> list[int]:
        """Indices into ``files`` in the order of one epoch, bad files included; a function of seed, epoch and count."""
        rng = np.random.default_rng(derive_seed(self.seed, "images", epoch))
        return [int(i) for i in rng.permutation(len(self.files))]

    def take(
        self, count: int, share: range | None = None, gather: Callable[[Any], list[Any]] = lambda value: [value]
    ) -> list[PoolImage]:
        """The next ``count`` images. A file that cannot be read is set aside and the next one is drawn instead.

        Files are decoded on threads, those of the next call while the caller works on these; what is taken or set
        aside, and when, does not depend on that.

        Args:
            share: which of them this process opens and gets, where several work together; None: all.
            gather: returns JSON data of every process: a file that one of them cannot read is bad for all.

        Raises:
            ImageError: every file turned out to be bad.
            ProcessError: another process has ended.
        """
        share = range(count) if share is None else share
        files: list[str] = []
        opened: dict[str, PoolImage] = {}
        while True:
            while len(files) < count:
                files.append(self._next())
            mine = [files[i] for i in share]
            wanted = [file for file in dict.fromkeys(mine) if file not in opened]
            self._decode(wanted)
            bad: dict[str, str] = {}
            for file in wanted:
                try:
                    opened[file] = PoolImage(self.folder / file, self._ahead.pop(file).result())
                except ImageError as error:
                    bad[file] = error.why
            found = {file: why for theirs in gather(bad) for file, why in theirs.items()}
            if not found:
                self._look_ahead(count, share)
                return [opened[file] for file in mine]
            for file, why in found.items():
                self._set_aside(file, why)
            self._check_usable()
            files = [file for file in files if file not in found]

    def _decode(self, files: Iterable[str]) -> None:
        for file in files:
            if file not in self._ahead:
                self._ahead[file] = self._threads.submit(open_image, self.folder / file)

    def _look_ahead(self, count: int, share: range) -> None:
        """Begin with what a next call for as many images would take from this epoch, and forget any other."""
        coming = (self.files[i] for i in self._order[self._position :])
        files = list(islice((file for file in coming if file not in self.quarantined), count))
        mine = [files[i] for i in share if i < len(files)]
        self._ahead = {file: self._ahead[file] for file in mine if file in self._ahead}
        self._decode(mine)

    def _next(self) -> str:
        while True:
            if self._position == len(self._order):
                self._epoch, self._position = self._epoch + 1, 0
                self._order = self.order(self._epoch)
            file = self.files[self._order[self._position]]
            self._position += 1
            if file not in self.quarantined:
                return file

    def state(self) -> dict[str, Any]:
        """The cursor and what was set aside, as plain JSON data."""
        return {
            "epoch": self._epoch,
            "position": self._position,
            "files": self._fingerprint,
            "quarantined": dict(sorted(self.quarantined.items())),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue where :meth:`state` was taken.

        Raises:
            CheckpointError: the folder holds other files than then, so the order would be another one.
            LookupError, TypeError, ValueError: ``state`` was not written by an image pool.
        """
        if state["files"] != self._fingerprint:
            raise CheckpointError(
                f"the images in {self.folder} are not those of the checkpoint",
                "files were added, removed or renamed since, so the run cannot go on as it was",
                "put the folder back as it was, or start a new run",
            )
        epoch, position = state["epoch"], state["position"]
        if type(epoch) is not int or type(position) is not int or epoch < 0 or not 0 <= position <= len(self.files):
            raise ValueError(f"no place in {self.folder}: epoch {epoch!r:.50}, position {position!r:.50}")
        self._epoch, self._position = epoch, position
        self._order = self.order(epoch)
        self.quarantined |= {str(file): str(reason) for file, reason in state["quarantined"].items()}

    def _set_aside(self, file: str, reason: str) -> None:
        self.quarantined[file] = reason
        self.on_quarantine(Path(file), reason)

    def _check_usable(self) -> None:
        if len(self):
            return
        if self.quarantined:
            file, reason = next(iter(self.quarantined.items()))
            why = f"all {len(self.files)} image files are bad, e.g. {file}: {reason}"
        else:
            why = "no file name in it ends in " + ", ".join(sorted(SUFFIXES))
        raise ImageError(f"images={self.folder} holds no usable image", why, "give a folder of photos or drawings")


def scan_images(folder: Path) -> Iterator[str]:
    """Paths inside ``folder``, "/" between their parts, of all files with an image suffix, in no particular order.

    Links to directories are followed, each real directory is entered once, so loops end. Unreadable directories and
    names that start with "." are left out.

    Raises:
        ImageError: ``folder`` is missing, not a directory, or cannot be read.
    """
    try:
        os.listdir(folder)
    except OSError as error:
        raise ImageError(
            f"images={folder} cannot be used", error.strerror or str(error), "give an existing folder that you may read"
        ) from None
    entered: set[tuple[int, int]] = set()
    for directory, folders, names in os.walk(folder, followlinks=True):
        with suppress(OSError):  # it may be gone by now
            status = os.stat(directory)
            if (status.st_dev, status.st_ino) in entered:
                folders.clear()
                continue
            entered.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        inside = Path(directory).relative_to(folder)
        for name in names:
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in SUFFIXES:
                yield (inside / name).as_posix()
