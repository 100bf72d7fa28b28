"""Scores on disk: ``before.json`` and ``after.json``, one row an item, and the protocol of each beside them.

A run folder keeps them in ``evaluation/``, ``asg eval --out DIR`` in ``DIR``.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from asg_core.errors import RunFolderError
from asg_core.evaluation.items import EvalItem
from asg_core.evaluation.protocol import FILE, Protocol, ProtocolError, read_protocols, record_protocol
from asg_core.runs.folder import write_json, writing_to

BEFORE: Literal["before"] = "before"
AFTER: Literal["after"] = "after"


@dataclass(frozen=True)
class StoredScore:
    """One evaluation as read from disk, with the protocol under which it was measured."""

    file: Path
    items: list[EvalItem]
    protocol: Protocol


def new_folder(out: Path) -> None:
    """Make ``out``. Raises RunFolderError if it holds scores already or cannot be made."""
    if any((out / f"{name}.json").exists() for name in (BEFORE, AFTER)):
        raise RunFolderError(f"{out} holds scores already", "they are never overwritten", "choose another --out DIR")
    with writing_to(out):
        out.mkdir(parents=True, exist_ok=True)


def store(folder: Path, score: Literal["before", "after"], items: Sequence[EvalItem], protocol: Protocol) -> None:
    """Write the rows of a score and its protocol; the protocol first, so that no score is ever without one."""
    record_protocol(folder, score, protocol)
    write_json(folder / f"{score}.json", [asdict(item) for item in items])


def read_score(path: Path, score: Literal["before", "after"] | None = None) -> StoredScore:
    """The score in a run folder, a folder of scores, or a file ``before.json`` or ``after.json``.

    Of a folder without ``score`` it is the trained model's where there is one, else the base model's.

    Raises:
        RunFolderError: there is no such score. ProtocolError: it has no protocol, or one cannot be read.
    """
    file = path if path.is_file() else _file_in(path, score)
    try:
        items = [EvalItem(**row) for row in json.loads(file.read_text(encoding="utf-8"))]
    except (ValueError, TypeError) as error:
        why = f"{type(error).__name__}: {error}"
        raise RunFolderError(f"{file} is not a stored evaluation", why, "evaluate again") from error
    protocol = read_protocols(file.parent).get(file.stem)
    if protocol is None:
        raise ProtocolError(
            f"{file} has no protocol",
            f"{file.parent / FILE} has no entry {file.stem!r}: it was written by an older version, or moved alone",
            "evaluate again; a score without its protocol cannot be compared",
        )
    return StoredScore(file, items, protocol)


def _file_in(path: Path, score: str | None) -> Path:
    folder = path / "evaluation" if (path / "config.yaml").is_file() else path
    names = (AFTER, BEFORE) if score is None else (score,)
    for name in names:
        if (folder / f"{name}.json").is_file():
            return folder / f"{name}.json"
    raise RunFolderError(
        f"{path} holds no score",
        f"there is no {' and no '.join(f'{name}.json' for name in names)} in {folder}",
        "give a run that was evaluated, or what asg eval --out wrote",
    )
