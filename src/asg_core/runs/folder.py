"""The folder of a run: where everything is, who may write it, and append-only records that survive a crash."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from safetensors import SafetensorError

from asg_core.errors import RunFolderError

_DISK_PROBLEMS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO})


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
    profile = property(lambda self: self.path / "profile.json")

    @classmethod
    def create(cls, path: Path) -> RunFolder:
        """Make a new run folder. Raises RunFolderError if it holds another run or files, or cannot be written."""
        folder = cls(path)
        try:
            cls._check_new(path)
            path.mkdir(parents=True, exist_ok=True)
            folder._acquire()
            try:
                cls._check_new(path)  # again: another process may have been faster than the lock
                for child in (folder.samples, folder.adapters, folder.checkpoints, folder.evaluation):
                    child.mkdir(exist_ok=True)
                folder.quarantine.touch()
                folder.metrics.touch()
                fsync_path(path)
            except BaseException:
                folder.close()
                raise
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
        with disk_problems(path):
            folder._acquire()
            for file in (folder.metrics, folder.quarantine):
                _drop_torn_line(file)
        return folder

    @classmethod
    def _check_new(cls, path: Path) -> None:
        if path.exists() and not path.is_dir():
            raise RunFolderError(f"out={path} is a file", "a run needs a folder", "choose another folder with out=DIR")
        if (path / "config.yaml").exists():
            raise RunFolderError(
                f"out={path} already holds a run",
                "a run never overwrites another one",
                f"continue it with resume={path}, or choose another folder with out=DIR",
            )
        if path.is_dir() and not cls._unfinished(path):
            raise RunFolderError(
                f"out={path} is not empty",
                "it holds files that are not a run's",
                "choose an empty or new folder with out=DIR",
            )

    @staticmethod
    def _unfinished(path: Path) -> bool:
        """Whether a folder without config.yaml holds nothing, or only what a killed :meth:`create` left behind."""
        for child in path.iterdir():
            if child.name in ("samples", "adapters", "checkpoints", "evaluation"):
                left = child.is_dir() and not any(child.iterdir())
            elif child.name in ("metrics.jsonl", "quarantine.jsonl"):
                left = child.stat().st_size == 0
            else:
                left = child.name in (".lock", "config.yaml.tmp")
            if not left:
                return False
        return True

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
        kept = [r for r in read_json_lines(self.metrics) if isinstance(r.get("step"), int) and r["step"] <= step]
        write_atomically(self.metrics, "".join(json.dumps(r) + "\n" for r in kept))


@contextmanager
def disk_problems(folder: Path) -> Iterator[None]:
    """Inside, files below ``folder`` are written; a disk that is full, read-only or gone becomes a RunFolderError."""
    try:
        yield
    except SafetensorError as error:
        raise _not_written(folder, error) from error
    except OSError as error:
        own = isinstance(error.filename, str) and Path(error.filename).is_relative_to(folder)
        if own or error.errno in _DISK_PROBLEMS:
            raise _not_written(folder, error) from error
        raise


def _not_written(folder: Path, error: Exception) -> RunFolderError:
    return RunFolderError(
        f"{folder} cannot be written",
        str(error),
        f"check its permissions and free space, then go on with: asg train resume={folder}",
    )


@contextmanager
def writing_to(out: Path) -> Iterator[None]:
    """Turns an OSError of writing what ``--out`` names into a RunFolderError."""
    try:
        yield
    except OSError as error:
        raise RunFolderError(
            f"--out {out} cannot be used", error.strerror or str(error), "choose a folder that you may write"
        ) from error


def read_json_lines(file: Path) -> list[dict[str, Any]]:
    """All complete lines of a JSONL file in order, none if it is missing; a torn last line is left out."""
    records: list[dict[str, Any]] = []
    if not file.is_file():
        return records
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            break
        if isinstance(record, dict):
            records.append(record)
    return records


def _drop_torn_line(file: Path) -> None:
    """Cut what follows the last line end, as a kill while appending leaves it, so that appending can go on."""
    if file.is_file():
        whole = file.read_bytes().rfind(b"\n") + 1
        if whole < file.stat().st_size:
            os.truncate(file, whole)


def write_atomically(file: Path, text: str) -> None:
    """Replace ``file`` by ``text`` so that a reader or a crash sees the old or the new content, never a part."""
    temporary = file.with_name(file.name + ".tmp")
    with temporary.open("w", encoding="utf-8") as out:
        out.write(text)
        out.flush()
        os.fsync(out.fileno())
    temporary.replace(file)
    fsync_path(file.parent)


def write_json(file: Path, value: object) -> None:
    """:func:`write_atomically` of indented JSON; NaN is refused with ValueError."""
    write_atomically(file, json.dumps(value, indent=2, allow_nan=False) + "\n")


def fill_directory(directory: Path, fill: Callable[[Path], object]) -> None:
    """Make ``directory``, which must not exist, with what ``fill`` writes into it: whole, or not at all."""
    temporary = directory.with_name(directory.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    fill(temporary)
    temporary.rename(directory)


def fsync_path(path: Path) -> None:
    """Push a file, or the entries of a directory, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
