"""Checkpoints: safetensors and JSON, hashed, written aside and renamed. Never pickle.

``checkpoints/step-000025/`` holds ``adapters/<role>/`` (PEFT files), ``optimizer-<role>.safetensors`` (AdamW moments),
``random.safetensors`` (generator states of torch), ``state.json`` (everything else), and ``manifest.json`` with the
sha256 of each file. A step counts only if its manifest is complete and every hash fits; what counts is never touched
again before ``KEEP`` newer steps count too.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from asg_core.backbones.interface import Backbone, Role
from asg_core.errors import CheckpointError, RunFolderError, WeightsError
from asg_core.runs.folder import fsync_path
from asg_core.training.optimizer import RoleOptimizer
from asg_core.training.rng import random_state, set_random_state

SCHEMA = 1
KEEP = 2
"""Good checkpoints kept in a run folder."""
MAX_JSON_BYTES = 64 * 2**20
"""Largest ``manifest.json`` or ``state.json`` that is read."""

_NAME = re.compile(r"step-(\d{6,12})")
_MISFITS = (
    OSError,
    ArithmeticError,
    AttributeError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
    SafetensorError,
    WeightsError,
)
"""What reading a well-hashed checkpoint that is not of this run can end in."""


def save_checkpoint(
    folder: Path, step: int, backbone: Backbone, optimizers: Mapping[Role, RoleOptimizer], state: Mapping[str, Any]
) -> Path:
    """Write the checkpoint of ``step`` below ``folder``; older ones beyond ``KEEP`` good ones are removed afterwards.

    A good checkpoint of the same step is left as it is.

    Raises:
        CheckpointError: it could not be written, e.g. because the disk is full. Everything older is still there.
    """
    final = folder / f"step-{step:06d}"
    if is_good(final):
        return final
    temporary = folder / f".tmp-step-{step:06d}"
    try:
        for left in folder.glob(".tmp-step-*"):
            shutil.rmtree(left, ignore_errors=True)
        _write(temporary, step, backbone, optimizers, state)
        if final.is_symlink() or final.is_file():
            final.unlink()
        elif final.exists():  # damaged
            shutil.rmtree(final)
        temporary.rename(final)
        fsync_path(folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise CheckpointError(
            f"the checkpoint of step {step} could not be written",
            str(error),
            f"free some space on the disk of {folder}; the older checkpoints are untouched",
        ) from error
    verify(final)
    _prune(folder, final)
    return final


def _write(
    folder: Path, step: int, backbone: Backbone, optimizers: Mapping[Role, RoleOptimizer], state: Mapping[str, Any]
) -> None:
    folder.mkdir(parents=True)
    for role, optimizer in optimizers.items():
        backbone.save_role(role, folder / "adapters" / role.value)
        save_file(
            {k: v.contiguous() for k, v in optimizer.state().items()}, folder / f"optimizer-{role.value}.safetensors"
        )
    tensors, scalars = random_state()
    save_file(tensors, folder / "random.safetensors")
    document = {"schema": SCHEMA, "step": step, "random": scalars, **state}
    (folder / "state.json").write_text(json.dumps(document, indent=1, allow_nan=False), encoding="utf-8")
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    hashes = {p.relative_to(folder).as_posix(): _sha256(p) for p in files}
    manifest = {"schema": SCHEMA, "step": step, "sha256": hashes}
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1), encoding="utf-8")
    for path in [*files, folder / "manifest.json", *(p for p in folder.rglob("*") if p.is_dir()), folder]:
        fsync_path(path)


def _prune(folder: Path, newest: Path) -> None:
    """Remove what is older than the ``KEEP`` newest good checkpoints; damaged ones in between stay until then."""
    good = 1
    for old in steps(folder):
        if step_of(old) >= step_of(newest):
            continue
        if good >= KEEP:
            shutil.rmtree(old, ignore_errors=True)
        elif is_good(old):
            good += 1


def verify(checkpoint: Path) -> dict[str, Any]:
    """The checkpoint's state document.

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
            f"checkpoint {checkpoint} has schema {_short(schema)}, this version reads {SCHEMA}",
            f"it was written by {'a newer' if newer else 'another'} version of asg-core",
            "resume with the version that wrote it",
        )
    hashes = manifest.get("sha256")
    if not isinstance(hashes, dict) or manifest.get("step") != step_of(checkpoint):
        raise _damaged(checkpoint, "manifest.json does not list the files of this step")
    needed = {"state.json", "random.safetensors", *(f"optimizer-{role.value}.safetensors" for role in Role)}
    for name in sorted(hashes.keys() | needed):
        if name not in found or name not in hashes:
            raise _damaged(checkpoint, f"{_short(name)} is missing")
        try:
            fits = _sha256(checkpoint / name) == hashes[name]
        except OSError as error:
            raise _damaged(checkpoint, f"{name}: {error.strerror}") from error
        if not fits:
            raise _damaged(checkpoint, f"{name} does not have the recorded sha256")
    if unknown := found - hashes.keys() - {"manifest.json"}:
        raise _damaged(checkpoint, f"{_short(min(unknown))} is not in its manifest")
    state = _read_object(checkpoint, "state.json", found)
    if state.get("step") != step_of(checkpoint):
        raise _damaged(checkpoint, f"state.json is of step {_short(state.get('step'))}")
    return state


def is_good(checkpoint: Path) -> bool:
    """Whether :meth:`verify` accepts it."""
    try:
        verify(checkpoint)
    except CheckpointError:
        return False
    return True


def newest_good(folder: Path) -> tuple[Path, dict[str, Any], list[CheckpointError]]:
    """The newest checkpoint that verifies, its state, and the errors of newer ones that do not.

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
    """All that is named like a checkpoint, good or not, the newest step first."""
    try:
        found = [path for path in folder.iterdir() if _NAME.fullmatch(path.name)]
    except OSError:
        return []
    return sorted(found, key=lambda path: (step_of(path), path.name), reverse=True)


def step_of(checkpoint: Path) -> int:
    """The step in the name of a checkpoint; -1 if it is not named like one."""
    match = _NAME.fullmatch(checkpoint.name)
    return int(match[1]) if match else -1


def restore(checkpoint: Path, backbone: Backbone, optimizers: Mapping[Role, RoleOptimizer]) -> None:
    """Load adapters and moments exactly as they were saved. Raises CheckpointError if they are not of this model."""
    with fitting(str(checkpoint)):
        for role, optimizer in optimizers.items():
            backbone.load_role(role, checkpoint / "adapters" / role.value)
            moments = load_file(checkpoint / f"optimizer-{role.value}.safetensors")
            _check_moments(moments, optimizer)
            optimizer.restore(moments)


def _check_moments(moments: Mapping[str, Tensor], optimizer: RoleOptimizer) -> None:
    for full, value in moments.items():
        name, _, key = full.rpartition(".")
        weight = optimizer.parameters[name].shape
        expected = {"step": torch.Size(()), "exp_avg": weight, "exp_avg_sq": weight}[key]
        if value.shape != expected or value.dtype != torch.float32:
            raise ValueError(f"{full} is {value.dtype} {tuple(value.shape)}, not float32 {tuple(expected)}")


def restore_random(checkpoint: Path, state: Mapping[str, Any]) -> None:
    """Set the global random generators as they were saved. Raises CheckpointError if the record is none of theirs."""
    with fitting(str(checkpoint)):
        set_random_state((load_file(checkpoint / "random.safetensors"), state["random"]))


@contextmanager
def fitting(source: str) -> Iterator[None]:
    """Inside, data of a well-hashed checkpoint is taken in; what does not fit this run becomes one CheckpointError."""
    try:
        yield
    except _MISFITS as error:
        raise CheckpointError(
            f"{source} does not fit this run",
            f"{type(error).__name__}: {_short(error)}",
            "resume a run with the backbone, the plugin version and the lora settings that it was started with",
        ) from error


def finite(value: Any) -> float:
    """``value`` as a finite float. TypeError or ValueError if it is none."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{_short(value)} is not a number")
    if not math.isfinite(value):
        raise ValueError(f"{value} is not finite")
    return float(value)


def check_free_space(folder: Path, backbone: Backbone) -> None:
    """Refuse to start where the checkpoints of a run would not fit: adapters and two moments in float32, ``KEEP`` + 1
    times while one is being written, and the final adapters.

    Raises:
        RunFolderError: too little space where ``folder`` is, or will be.
    """
    adapters = 4 * sum(p.numel() for role in Role for p in backbone.trainable(role).values())
    needed = adapters * (3 * (KEEP + 1) + 1)
    place = next(path for path in [folder.absolute(), *folder.absolute().parents] if path.exists())
    free = shutil.disk_usage(place).free
    if free < needed:
        raise RunFolderError(
            f"the disk of {folder} is too full for a run",
            f"checkpoints need about {needed / 2**20:.0f} MiB, {free / 2**20:.0f} MiB are free",
            "free some space, or choose a folder on another disk with out=DIR",
        )


def _files(checkpoint: Path) -> set[str]:
    """Names of all files inside, "/" between their parts, without those that begin with "."; none may be a link."""
    found: set[str] = set()
    if checkpoint.is_symlink() or not checkpoint.is_dir():
        raise _damaged(checkpoint, "it is not a directory")
    for parent, directories, names in os.walk(checkpoint):
        for name in [*directories, *names]:
            path = Path(parent, name)
            if path.is_symlink() or not (path.is_dir() or path.is_file()):
                raise _damaged(checkpoint, f"{_short(path.relative_to(checkpoint))} is not a regular file")
        found.update(Path(parent, n).relative_to(checkpoint).as_posix() for n in names if not n.startswith("."))
    return found


def _read_object(checkpoint: Path, name: str, found: set[str]) -> dict[str, Any]:
    if name not in found:
        raise _damaged(checkpoint, f"{name} is missing")
    try:
        with (checkpoint / name).open("rb") as file:
            raw = file.read(MAX_JSON_BYTES + 1)
        if len(raw) > MAX_JSON_BYTES:
            raise _damaged(checkpoint, f"{name} has more than {MAX_JSON_BYTES} bytes")
        value = json.loads(raw.decode("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise _damaged(checkpoint, f"{name}: {_short(error)}") from error
    if not isinstance(value, dict):
        raise _damaged(checkpoint, f"{name} holds no JSON object")
    return value


def _damaged(checkpoint: Path, reason: str) -> CheckpointError:
    return CheckpointError(
        f"checkpoint {checkpoint} is damaged", reason, "resume falls back to the newest good one; delete this folder"
    )


def _sha256(file: Path) -> str:
    with file.open("rb") as data:
        return hashlib.file_digest(data, "sha256").hexdigest()


def _short(value: object) -> str:
    return ascii(str(value))[1:-1][:200]
