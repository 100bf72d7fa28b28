"""Nothing good is ever taken away: what writing and pruning leave."""

from __future__ import annotations

import os
import resource
import shutil
from pathlib import Path
from typing import Any

import pytest

import asg_core.training.checkpoint as checkpoint
from asg_core.errors import CheckpointError
from asg_core.training.checkpoint_files import is_good, newest_good, steps

from .conftest import names


def test_a_good_checkpoint_of_the_same_step_is_left_as_it_is(two: Path, model: Any) -> None:
    before = os.stat(two / "step-000004" / "manifest.json")
    model.save(two, 4)
    after = os.stat(two / "step-000004" / "manifest.json")
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)


def test_a_damaged_checkpoint_of_the_same_step_is_replaced(two: Path, model: Any) -> None:
    (two / "step-000004" / "state.json").unlink()
    model.save(two, 4)
    assert newest_good(two)[0].name == "step-000004"


@pytest.mark.parametrize("kind", ["link", "file", "dangling"])
def test_what_is_no_directory_in_its_place_is_replaced_and_not_followed(kind: str, two: Path, model: Any) -> None:
    target = two / "step-000006"
    if kind == "file":
        target.write_text("x")
    else:
        target.symlink_to(two / ("step-000004" if kind == "link" else "nowhere"))
    (two / ".tmp-step-000001").write_text("left by something else")
    model.save(two, 6)
    assert is_good(target)
    assert is_good(two / "step-000004")


def test_damaged_newer_checkpoints_do_not_push_out_the_last_good_one(two: Path, model: Any) -> None:
    model.save(two, 6)
    assert names(two) == ["step-000004", "step-000006"]
    (two / "step-000006" / "optimizer-solver.safetensors").write_bytes(b"")
    model.save(two, 8)
    assert names(two) == ["step-000004", "step-000006", "step-000008"]
    model.save(two, 10)
    assert [p.name for p in steps(two) if is_good(p)] == ["step-000010", "step-000008"]
    assert names(two) == ["step-000008", "step-000010"]


def test_nothing_is_pruned_for_a_checkpoint_that_does_not_verify(
    two: Path, model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = checkpoint.verify

    def lying_disk(path: Path) -> dict[str, Any]:
        if path.name == "step-000006" and path.exists():
            (path / "state.json").write_text("{}")
        return real(path)

    monkeypatch.setattr(checkpoint, "verify", lying_disk)
    with pytest.raises(CheckpointError, match="damaged"):
        model.save(two, 6)
    assert [p.name for p in steps(two) if is_good(p)] == ["step-000004", "step-000002"]


def test_a_full_disk_at_any_write_keeps_the_old_step_and_the_next_try_succeeds(
    tmp_path: Path, model: Any, faults: Any
) -> None:
    folder = tmp_path / "c"
    model.save(folder, 2)
    faults.arm(folder, 0)
    model.save(folder, 4)
    total = len(faults.seen)
    assert total > 30
    for k in range(1, total + 1):
        shutil.rmtree(folder / "step-000004")
        faults.arm(folder, k)
        with pytest.raises(CheckpointError, match="could not be written") as raised:
            model.save(folder, 4)
        faults.disarm()
        assert "No space left" in raised.value.why
        assert is_good(folder / "step-000002"), faults.seen[-1]
        assert newest_good(folder)[2] == []
        assert set(names(folder)) <= {"step-000002", "step-000004"}
        model.save(folder, 4)
        assert newest_good(folder)[0].name == "step-000004"


def test_a_write_that_the_kernel_refuses_is_the_same_error(tmp_path: Path, model: Any) -> None:
    """Not injected: a file size limit makes safetensors' own writes fail."""
    model.save(tmp_path, 2)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(CheckpointError, match="could not be written"):
            model.save(tmp_path, 4)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert names(tmp_path) == ["step-000002"]
    assert is_good(tmp_path / "step-000002")
