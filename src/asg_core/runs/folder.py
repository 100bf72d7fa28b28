"""The folder of a run: where everything is, who may write it, and append-only records that survive a crash."""

from __future__ import annotations

import errno
import fcntl
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from safetensors import SafetensorError

from asg_core.errors import RunFolderError

Record = dict[str, Any]

_FILES = ("config.yaml", "metrics.jsonl", "quarantine.jsonl")
_FOLDERS = ("samples", "adapters", "checkpoints", "evaluation")
_DISK_PROBLEMS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO})


class RunFolder:
    """Paths of one run. :meth:`create` makes a new one, :meth:`reopen` continues one; both take the write lock."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config, self.metrics, self.quarantine = (path / name for name in _FILES)
        self.samples, self.adapters, self.checkpoints, self.evaluation = (path / name for name in _FOLDERS)
        self.images = path / "images"
        self.summary, self.profile = path / "summary.json", path / "profile.json"
        self._lock: IO[str] | None = None

    @classmethod
    def create(cls, path: Path) -> RunFolder:
        """Make a new run folder. Raises RunFolderError if it holds another run or files, or cannot be written."""
        folder = cls(path)
        with writing_to(path, "out="):
            _require_new(path)
            path.mkdir(parents=True, exist_ok=True)
            folder._acquire()
            try:
                _require_new(path)  # again: another process may have been faster than the lock
                for child in _FOLDERS:
                    (path / child).mkdir(exist_ok=True)
                folder.quarantine.touch()
                folder.metrics.touch()
                fsync_path(path)
            except BaseException:
                folder.close()
                raise
        return folder

    @classmethod
    def reopen(cls, path: Path) -> RunFolder:
        """Open an existing run for writing. Raises RunFolderError if there is none or another process writes it."""
        run_config_file(path)
        folder = cls(path)
        with disk_problems(path):
            folder._acquire()
            for file in (folder.metrics, folder.quarantine):
                if file.is_file():  # what follows the last line end is of a kill while appending
                    os.truncate(file, file.read_bytes().rfind(b"\n") + 1)
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
        kept = [r for r in read_json_lines(self.metrics) if isinstance(r.get("step"), int) and r["step"] <= step]
        write_atomically(self.metrics, "".join(json.dumps(r) + "\n" for r in kept))


def run_config_file(run: Path) -> Path:
    """The configuration stored in a run folder. Raises RunFolderError if there is none."""
    config = run / "config.yaml"
    if not config.is_file():
        raise RunFolderError(f"{run} is not a run", "it holds no config.yaml", "give the folder that asg train wrote")
    return config


def _require_new(path: Path) -> None:
    if path.exists() and not path.is_dir():
        raise RunFolderError(f"out={path} is a file", "a run needs a folder", "choose another folder with out=DIR")
    if (path / "config.yaml").exists():
        raise RunFolderError(
            f"out={path} already holds a run",
            "a run never overwrites another one",
            f"continue it with resume={path}, or choose another folder with out=DIR",
        )
    if path.is_dir() and not all(map(_is_left_over, path.iterdir())):
        raise RunFolderError(
            f"out={path} is not empty",
            "it holds files that are not a run's",
            "choose an empty or new folder with out=DIR",
        )


def _is_left_over(child: Path) -> bool:
    """Whether a killed :meth:`RunFolder.create` leaves such a file or folder behind, with nothing of value in it."""
    if child.name in _FOLDERS:
        return child.is_dir() and not any(child.iterdir())
    if child.name in ("metrics.jsonl", "quarantine.jsonl"):
        return child.stat().st_size == 0
    return child.name in (".lock", "config.yaml.tmp")


@contextmanager
def disk_problems(folder: Path) -> Iterator[None]:
    """Inside, files below ``folder`` are written; a disk that is full, read-only or gone becomes a RunFolderError."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        file = getattr(error, "filename", None)
        own = isinstance(file, str) and Path(file).is_relative_to(folder)
        if isinstance(error, OSError) and error.errno not in _DISK_PROBLEMS and not own:
            raise
        raise RunFolderError(
            f"{folder} cannot be written",
            str(error),
            f"check its permissions and free space, then go on with: asg train resume={folder}",
        ) from error


@contextmanager
def writing_to(out: Path, option: str = "--out ") -> Iterator[None]:
    """Turns an OSError of writing what ``option`` names into a RunFolderError."""
    try:
        yield
    except OSError as error:
        raise RunFolderError(
            f"{option}{out} cannot be written",
            str(error),
            "check its permissions and free space, or choose another folder",
        ) from error


def json_lines(text: str) -> list[Record | None]:
    """What each line of a JSONL file holds, None for a line that is no object, as a kill leaves the last one."""
    found: list[Record | None] = []
    for line in text.splitlines():
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            record = None
        found.append(record if isinstance(record, dict) else None)
    return found


def read_json_lines(file: Path) -> list[Record]:
    """All complete lines of a JSONL file in order, none if it is missing; a torn last line is left out."""
    text = file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""
    return [record for record in json_lines(text) if record is not None]


def number(value: object) -> float | None:
    """``value`` as a float, None unless it is a finite number (null, NaN, text and booleans are no numbers)."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


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
