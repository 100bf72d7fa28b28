"""The folder of a run: where everything is, who may write it, and append-only records that survive a crash."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from asg_core.errors import RunFolderError


class RunFolder:
    """Paths of one run. Use :meth:`create` for a new run and :meth:`reopen` to continue one; both take the write lock.

    Attributes:
        path: the folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: IO[str] | None = None

    config = property(lambda self: self.path / "config.yaml")
    metrics = property(lambda self: self.path / "metrics.jsonl")
    quarantine = property(lambda self: self.path / "quarantine.jsonl")
    samples = property(lambda self: self.path / "samples")
    adapters = property(lambda self: self.path / "adapters")
    checkpoints = property(lambda self: self.path / "checkpoints")
    evaluation = property(lambda self: self.path / "evaluation")
    images = property(lambda self: self.path / "images")
    summary = property(lambda self: self.path / "summary.json")

    @classmethod
    def create(cls, path: Path) -> RunFolder:
        """Make a new run folder. Raises RunFolderError if it holds another run or files, or cannot be written."""
        folder = cls(path)
        if path.exists() and not path.is_dir():
            raise RunFolderError(f"out={path} is a file", "a run needs a folder", "choose another folder with out=DIR")
        if (path / "config.yaml").exists():
            raise RunFolderError(
                f"out={path} already holds a run",
                "a run never overwrites another one",
                f"continue it with resume={path}, or choose another folder with out=DIR",
            )
        if path.is_dir() and any(path.iterdir()):
            raise RunFolderError(
                f"out={path} is not empty",
                "it holds files that are not a run's",
                "choose an empty or new folder with out=DIR",
            )
        try:
            path.mkdir(parents=True, exist_ok=True)
            folder._acquire()
            for child in (folder.samples, folder.adapters, folder.checkpoints, folder.evaluation):
                child.mkdir()
            folder.quarantine.touch()
            folder.metrics.touch()
        except OSError as error:
            raise RunFolderError(
                f"out={path} cannot be written",
                str(error),
                "check its permissions and free space, or choose another out=DIR",
            ) from error
        return folder

    @classmethod
    def reopen(cls, path: Path) -> RunFolder:
        """Open an existing run for writing. Raises RunFolderError if there is none or another process writes it."""
        if not (path / "config.yaml").is_file():
            raise RunFolderError(
                f"{path} holds no run", "there is no config.yaml in it", "give the folder that out= named"
            )
        folder = cls(path)
        folder._acquire()
        return folder

    def _acquire(self) -> None:
        lock = open(self.path / ".lock", "a+", encoding="utf-8")  # noqa: SIM115 - held until close()
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            owner = lock.read().strip() or "an unknown process"
            lock.close()
            raise RunFolderError(
                f"{self.path} is in use", f"process {owner} is writing it", "wait for it, or choose another out=DIR"
            ) from None
        lock.truncate(0)
        lock.write(f"{os.getpid()}\n")
        lock.flush()
        self._lock = lock

    def close(self) -> None:
        """Give the write lock back (the kernel does so too when the process dies)."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def append(self, file: Path, record: Mapping[str, Any]) -> None:
        """Append one JSON line and push it to the disk."""
        with file.open("a", encoding="utf-8") as out:
            out.write(json.dumps(record, allow_nan=False) + "\n")
            out.flush()
            os.fsync(out.fileno())

    def truncate_metrics(self, step: int) -> None:
        """Keep the lines of steps <= ``step``, in place and atomically; used on resume."""
        kept = [r for r in read_json_lines(self.metrics) if r["step"] <= step]
        write_atomically(self.metrics, "".join(json.dumps(r) + "\n" for r in kept))


def read_json_lines(file: Path) -> list[dict[str, Any]]:
    """All complete lines of a JSONL file in order; a torn last line is left out."""
    records = []
    for line in file.read_text(encoding="utf-8").splitlines():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return records


def write_atomically(file: Path, text: str) -> None:
    """Replace ``file`` by ``text`` so that a reader or a crash sees the old or the new content, never a part."""
    temporary = file.with_name(file.name + ".tmp")
    with temporary.open("w", encoding="utf-8") as out:
        out.write(text)
        out.flush()
        os.fsync(out.fileno())
    temporary.replace(file)


def write_json(file: Path, value: object) -> None:
    """:func:`write_atomically` of indented JSON; NaN is refused with ValueError."""
    write_atomically(file, json.dumps(value, indent=2, allow_nan=False) + "\n")
