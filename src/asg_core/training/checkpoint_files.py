"""Which checkpoints of a run are good: names, manifests and hashes. Nothing here loads a tensor.

``checkpoints/step-000025/`` holds ``adapters/<role>/`` (PEFT files), ``optimizer-<role>.safetensors`` (AdamW moments),
``state.json`` (everything else), and ``manifest.json`` with the sha256 of each file. A step counts only if its manifest
is complete and every hash fits.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from asg_core.backbones.interface import Role
from asg_core.errors import CheckpointError

SCHEMA = 2
MAX_JSON_BYTES = 64 * 2**20
"""Largest ``manifest.json`` or ``state.json`` that is read."""

_NAME = re.compile(r"step-(\d{6,12})")


def verify(checkpoint: Path) -> dict[str, Any]:
    """Return the checkpoint's state document, if it is good.

    Names of files come from the directory, never from the manifest, and links count as damage, so that nothing outside
    of the directory is ever opened.

    Raises:
        CheckpointError: names the first file that is missing, unknown or damaged, or the version that wrote it.
    """
    found = _files(checkpoint)
    manifest = _read_object(checkpoint, "manifest.json", found)
    schema = manifest.get("schema")
    if schema != SCHEMA:
        newer = isinstance(schema, int) and schema > SCHEMA
        raise CheckpointError(
            f"checkpoint {checkpoint} has schema {short(schema)}, this version reads {SCHEMA}",
            f"it was written by {'a newer' if newer else 'another'} version of asg-core",
            "resume with the version that wrote it",
        )
    hashes = manifest.get("sha256")
    if not isinstance(hashes, dict) or manifest.get("step") != step_of(checkpoint):
        raise _damaged(checkpoint, "manifest.json does not list the files of this step")
    needed = {"state.json", *(f"optimizer-{role.value}.safetensors" for role in Role)}
    for name in sorted(hashes.keys() | needed):
        if name not in found or name not in hashes:
            raise _damaged(checkpoint, f"{short(name)} is missing")
        try:
            fits = sha256(checkpoint / name) == hashes[name]
        except OSError as error:
            raise _damaged(checkpoint, f"{name}: {error.strerror}") from error
        if not fits:
            raise _damaged(checkpoint, f"{name} does not have the sha256 that manifest.json records")
    if unknown := found - hashes.keys() - {"manifest.json"}:
        raise _damaged(checkpoint, f"{short(min(unknown))} is not in its manifest")
    state = _read_object(checkpoint, "state.json", found)
    if state.get("step") != step_of(checkpoint):
        raise _damaged(checkpoint, f"state.json is of step {short(state.get('step'))}")
    return state


def is_good(checkpoint: Path) -> bool:
    """Return whether :func:`verify` accepts it."""
    try:
        verify(checkpoint)
    except CheckpointError:
        return False
    return True


def newest_good(folder: Path) -> tuple[Path, dict[str, Any], list[CheckpointError]]:
    """Return the newest checkpoint that verifies, its state, and the errors of newer ones that do not.

    Raises CheckpointError if there is none.
    """
    errors: list[CheckpointError] = []
    for checkpoint in steps(folder):
        try:
            return checkpoint, verify(checkpoint), errors
        except CheckpointError as error:
            errors.append(error)
    reasons = "; ".join(e.why for e in errors) or "none was written"
    raise CheckpointError(f"no usable checkpoint in {folder}", reasons, "start a new run with another out=DIR")


def steps(folder: Path) -> list[Path]:
    """Return all that is named like a checkpoint, good or not, the newest step first."""
    found = [path for path in folder.glob("step-*") if _NAME.fullmatch(path.name)]
    return sorted(found, key=lambda path: (step_of(path), path.name), reverse=True)


def step_of(checkpoint: Path) -> int:
    """Return the step in the name of a checkpoint; -1 if it is not named like one."""
    match = _NAME.fullmatch(checkpoint.name)
    return int(match[1]) if match else -1


def sha256(file: Path) -> str:
    """Return the digest of a file's content in hex."""
    with file.open("rb") as data:
        return hashlib.file_digest(data, "sha256").hexdigest()


def short(value: object) -> str:
    """Return ``value`` as at most 200 printable ASCII characters, for a message."""
    return ascii(str(value))[1:-1][:200]


def _files(checkpoint: Path) -> set[str]:
    """Names of all files inside, "/" between their parts, without those that begin with "."; none may be a link."""
    if checkpoint.is_symlink() or not checkpoint.is_dir():
        raise _damaged(checkpoint, "it is not a directory")
    found = {path.relative_to(checkpoint).as_posix(): path for path in checkpoint.rglob("*")}
    for name, path in found.items():
        if path.is_symlink() or not (path.is_dir() or path.is_file()):
            raise _damaged(checkpoint, f"{short(name)} is not a regular file")
    return {name for name, path in found.items() if path.is_file() and not path.name.startswith(".")}


def _read_object(checkpoint: Path, name: str, found: set[str]) -> dict[str, Any]:
    if name not in found:
        raise _damaged(checkpoint, f"{name} is missing")
    try:
        if (checkpoint / name).stat().st_size > MAX_JSON_BYTES:
            raise _damaged(checkpoint, f"{name} has more than {MAX_JSON_BYTES} bytes")
        value = json.loads((checkpoint / name).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise _damaged(checkpoint, f"{name}: {short(error)}") from error
    if not isinstance(value, dict):
        raise _damaged(checkpoint, f"{name} holds no JSON object")
    return value


def _damaged(checkpoint: Path, reason: str) -> CheckpointError:
    return CheckpointError(
        f"checkpoint {checkpoint} is damaged", reason, "resume falls back to the newest good one; delete this folder"
    )
