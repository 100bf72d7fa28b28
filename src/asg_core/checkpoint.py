"""Checkpoints: safetensors and JSON, hashed, written aside and renamed. Never pickle.

``checkpoints/step-000025/`` holds ``adapters/<role>/`` (PEFT files), ``optimiser-<role>.safetensors`` (AdamW moments),
``random.safetensors`` (generator states of torch), ``state.json`` (everything else), and ``manifest.json`` with the
sha256 of each file. A step counts only if its manifest is complete and every hash fits.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from asg_core.errors import CheckpointError
from asg_core.optimiser import RoleOptimiser
from asg_core.roles import Backbone, Role

SCHEMA = 1
KEEP = 2
"""Complete checkpoints kept in a run folder."""


def save_checkpoint(
    folder: Path, step: int, backbone: Backbone, optimisers: Mapping[Role, RoleOptimiser], state: Mapping[str, Any]
) -> Path:
    """Write the checkpoint of ``step`` below ``folder``; older ones beyond ``KEEP`` are removed once it is verified."""
    final = folder / f"step-{step:06d}"
    temporary = folder / f".tmp-step-{step:06d}"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    for role, optimiser in optimisers.items():
        backbone.save_role(role, temporary / "adapters" / role.value)
        save_file(
            {k: v.contiguous() for k, v in optimiser.state().items()}, temporary / f"optimiser-{role.value}.safetensors"
        )
    save_file(_random_tensors(), temporary / "random.safetensors")
    document = {"schema": SCHEMA, "step": step, "random": _random_scalars(), **state}
    (temporary / "state.json").write_text(json.dumps(document, indent=1, allow_nan=False), encoding="utf-8")
    files = sorted(p for p in temporary.rglob("*") if p.is_file())
    manifest = {"schema": SCHEMA, "step": step, "sha256": {str(p.relative_to(temporary)): _sha256(p) for p in files}}
    (temporary / "manifest.json").write_text(json.dumps(manifest, indent=1), encoding="utf-8")
    for path in [*files, temporary / "manifest.json", *(p for p in temporary.rglob("*") if p.is_dir()), temporary]:
        _fsync(path)
    if final.exists():
        shutil.rmtree(final)
    temporary.rename(final)
    _fsync(folder)
    verify(final)
    for old in _steps(folder)[KEEP:]:
        shutil.rmtree(old)
    return final


def verify(checkpoint: Path) -> dict[str, Any]:
    """The checkpoint's state document. Raises CheckpointError naming the first file that is missing or damaged."""
    try:
        manifest = json.loads((checkpoint / "manifest.json").read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise _damaged(checkpoint, f"manifest.json: {error}") from error
    if manifest.get("schema") != SCHEMA:
        raise CheckpointError(
            f"checkpoint {checkpoint} has schema {manifest.get('schema')}, this version reads {SCHEMA}",
            "it was written by another version of asg-core",
            "resume with the version that wrote it",
        )
    for name, expected in manifest["sha256"].items():
        file = checkpoint / name
        if not file.resolve().is_relative_to(checkpoint.resolve()) or not file.is_file():
            raise _damaged(checkpoint, f"{name} is missing")
        if _sha256(file) != expected:
            raise _damaged(checkpoint, f"{name} does not have the recorded sha256")
    state: dict[str, Any] = json.loads((checkpoint / "state.json").read_text(encoding="utf-8"))
    return state


def newest_good(folder: Path) -> tuple[Path, dict[str, Any], list[CheckpointError]]:
    """The newest checkpoint that verifies, its state, and the errors of newer ones that do not.

    Raises CheckpointError if there is none.
    """
    errors: list[CheckpointError] = []
    for checkpoint in _steps(folder):
        try:
            return checkpoint, verify(checkpoint), errors
        except CheckpointError as error:
            errors.append(error)
    reasons = "; ".join(e.why for e in errors) or "none was written"
    raise CheckpointError(f"no usable checkpoint in {folder}", reasons, "start a new run with another out=DIR")


def restore(
    checkpoint: Path, backbone: Backbone, optimisers: Mapping[Role, RoleOptimiser], state: Mapping[str, Any]
) -> None:
    """Load adapters, moments and global random generators exactly as they were saved."""
    for role, optimiser in optimisers.items():
        backbone.load_role(role, checkpoint / "adapters" / role.value)
        optimiser.restore(load_file(checkpoint / f"optimiser-{role.value}.safetensors"))
    _restore_random(load_file(checkpoint / "random.safetensors"), state["random"])


def _steps(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*"), reverse=True) if folder.is_dir() else []


def _damaged(checkpoint: Path, reason: str) -> CheckpointError:
    return CheckpointError(
        f"checkpoint {checkpoint} is damaged", reason, "resume falls back to the newest good one; delete this folder"
    )


def _sha256(file: Path) -> str:
    with file.open("rb") as data:
        return hashlib.file_digest(data, "sha256").hexdigest()


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _random_tensors() -> dict[str, Tensor]:
    tensors = {"torch": torch.get_rng_state()}
    if torch.cuda.is_available():
        tensors |= {f"cuda-{i}": s for i, s in enumerate(torch.cuda.get_rng_state_all())}
    return tensors


def _random_scalars() -> dict[str, Any]:
    name, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)  # noqa: NPY002 - plugins may use it
    return {"python": random.getstate(), "numpy": [name, np.asarray(keys).tolist(), position, has_gauss, gauss]}


def _restore_random(tensors: Mapping[str, Tensor], scalars: Mapping[str, Any]) -> None:
    torch.set_rng_state(tensors["torch"])
    if torch.cuda.is_available():
        for i in range(torch.cuda.device_count()):
            if f"cuda-{i}" in tensors:
                torch.cuda.set_rng_state(tensors[f"cuda-{i}"], i)
    version, internal, gauss = scalars["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, position, has_gauss, cached = scalars["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), position, has_gauss, cached))  # noqa: NPY002
