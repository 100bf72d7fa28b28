"""Checkpoints: safetensors and JSON, hashed, written aside and renamed. Never pickle.

What a checkpoint holds is in ``checkpoint_files``. One that counts is never touched again before ``KEEP`` newer steps
count too.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from asg_core.backbones.interface import Backbone, Role
from asg_core.errors import CheckpointError, WeightsError
from asg_core.runs.folder import fsync_path
from asg_core.training.checkpoint_files import SCHEMA, is_good, newest_good, sha256, short, step_of, steps, verify
from asg_core.training.distributed import Processes
from asg_core.training.optimizer import RoleOptimizer
from asg_core.training.state import TrainState, random_state, set_random_state

KEEP = 2
"""Good checkpoints kept in a run folder."""

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


class CheckpointManager:
    """The checkpoints of one run, which the first process writes and every process reads; ``say`` gets lines."""

    def __init__(
        self, folder: Path, processes: Processes | None = None, say: Callable[[str], None] = lambda line: None
    ) -> None:
        self.folder, self._processes, self._say = folder, processes or Processes(), say

    def save(self, state: TrainState) -> CheckpointError | None:
        """Write the checkpoint of the last finished step; every process must call this.

        A disk that is full costs no run: the error is shown and returned, the older checkpoints stay, and the next one
        is another try. After a rollback nothing is saved until the alarms that caused it have stayed silent over a full
        window, so that no checkpoint holds a collapse; a resumed run takes the same way again.
        """
        if state.rolled_back_for and not state.monitor.all_clear(state.rolled_back_for):
            self._say(f"step {state.step} is not saved: too soon after a rollback")
            return None
        _, *others = self._processes.gather(random_state())
        problem = self.write(state, others)
        if not self._processes.gather(problem is not None)[0]:
            state.rolled_back_for = ()
        return problem

    def write(self, state: TrainState, others: Sequence[Mapping[str, Any]] = ()) -> CheckpointError | None:
        """Write as :meth:`save`, without the other processes, which may be gone; not the first one: do nothing.

        A good checkpoint of the same step is left as it is. Afterwards older ones beyond ``KEEP`` good ones go, and
        what a process that was killed left of them. ``others`` are the global random generators of the other processes,
        by rank; those left out start from the seed.
        """
        step = state.step
        final, temporary = self.folder / f"step-{step:06d}", self.folder / f".tmp-step-{step:06d}"
        if not self._processes.is_main:
            return None
        try:
            if not is_good(final):
                self._replace(final, temporary, state, others)
            self._prune(final)
        except (OSError, SafetensorError, CheckpointError) as error:
            shutil.rmtree(temporary, ignore_errors=True)
            problem = CheckpointError(
                f"the checkpoint of step {step} could not be written",
                str(error),
                f"free some space on the disk of {self.folder}; the older checkpoints are untouched",
            )
            self._say(f"warning: {problem}")
            return problem
        return None

    def resume(self, state: TrainState) -> None:
        """Set ``state`` and the global random generators from the newest good checkpoint, if any was written.

        A process that the saved run did not have keeps its fresh generators.

        Raises:
            CheckpointError: there are checkpoints and none is good, or the good one does not fit this run.
        """
        if not steps(self.folder):
            self._say(f"{self.folder.parent} has no checkpoint yet; starting again from step 1")
            return
        found, document, errors = newest_good(self.folder)
        for error in errors:
            self._say(f"{error.what}: {error.why}; using {found.name}")
        load(found, state.backbone, state.optimizers)
        with fitting(str(found)):
            state.load_state_dict(document)
            streams = document["random"]
            if self._processes.rank < len(streams):
                set_random_state(streams[self._processes.rank])
        self._say(f"resuming after step {state.step} from {found}")

    def roll_back(self, state: TrainState, alarms: Sequence[str]) -> int | None:
        """Give the roles the weights, moments and controls of the newest good checkpoint; the steps and images go on.

        So the following steps see other images under other seeds. The monitor forgets, hence needs a full window to
        ring again.

        Returns:
            the step of the checkpoint; None, with nothing changed, if there is none, or if the run was rolled back
            before and has saved nothing since: going back again would only repeat what happened.
        """
        if state.rolled_back_for or not steps(self.folder):
            return None
        found, document, _ = newest_good(self.folder)
        load(found, state.backbone, state.optimizers)
        with fitting(str(found)):
            state.return_to(document)
        state.rolled_back_for = tuple(alarms)
        step: int = document["step"]
        return step

    def _replace(self, final: Path, temporary: Path, state: TrainState, others: Sequence[Mapping[str, Any]]) -> None:
        for left in self.folder.glob(".tmp-step-*"):
            shutil.rmtree(left, ignore_errors=True)
        _write(temporary, state, others)
        if final.is_symlink() or final.is_file():
            final.unlink()
        elif final.exists():  # damaged
            shutil.rmtree(final)
        temporary.rename(final)
        fsync_path(self.folder)
        verify(final)

    def _prune(self, newest: Path) -> None:
        """Remove what is older than the ``KEEP`` newest good checkpoints; damaged ones in between stay until then."""
        good = 1
        for old in steps(self.folder):
            if step_of(old) >= step_of(newest):
                continue
            if good >= KEEP:
                shutil.rmtree(old, ignore_errors=True)
            elif is_good(old):
                good += 1


def _write(folder: Path, state: TrainState, others: Sequence[Mapping[str, Any]]) -> None:
    folder.mkdir(parents=True)
    for role, optimizer in state.optimizers.items():
        state.backbone.save_role(role, folder / "adapters" / role.value)
        tensors = {name: value.contiguous() for name, value in optimizer.state().items()}
        save_file(tensors, folder / f"optimizer-{role.value}.safetensors")
    document = {"schema": SCHEMA, "step": state.step, "random": [random_state(), *others], **state.state_dict()}
    (folder / "state.json").write_text(json.dumps(document, indent=1, allow_nan=False), encoding="utf-8")
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    hashes = {p.relative_to(folder).as_posix(): sha256(p) for p in files}
    manifest = {"schema": SCHEMA, "step": state.step, "sha256": hashes}
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1), encoding="utf-8")
    for path in [*files, folder / "manifest.json", *(p for p in folder.rglob("*") if p.is_dir()), folder]:
        fsync_path(path)


def load(checkpoint: Path, backbone: Backbone, optimizers: Mapping[Role, RoleOptimizer]) -> None:
    """Load adapters and moments exactly as they were saved. Raises CheckpointError if they are not of this model."""
    with fitting(str(checkpoint)):
        for role, optimizer in optimizers.items():
            backbone.load_role(role, checkpoint / "adapters" / role.value)
            optimizer.restore(load_file(checkpoint / f"optimizer-{role.value}.safetensors"))


@contextmanager
def fitting(source: str) -> Iterator[None]:
    """Inside, data of a well-hashed checkpoint is taken in; what does not fit this run becomes one CheckpointError."""
    try:
        yield
    except _MISFITS as error:
        raise CheckpointError(
            f"{source} does not fit this run",
            f"{type(error).__name__}: {short(' '.join(str(error).split()))}",
            "resume a run with the backbone, the plugin version and the lora settings that it was started with",
        ) from error
