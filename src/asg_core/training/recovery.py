"""The state between two steps: taken before a step, put back when it fails, saved, resumed from, rolled back to.

Everything a step moves is here (METHOD, State that a resume must restore exactly): adapters, moments, KL weights, noise
floors, STE window, baseline, monitor, image cursor, counters and the global random streams.
"""

from __future__ import annotations

import gc
import traceback
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from asg_core.errors import CheckpointError, OutOfMemory
from asg_core.models.causal import CausalBackbone
from asg_core.training import checkpoint
from asg_core.training.chunked import checked_sizes, images_in_step
from asg_core.training.rng import as_json, from_json, random_state, set_random_state

if TYPE_CHECKING:
    from asg_core.backbones.interface import Role
    from asg_core.method.records import Kind
    from asg_core.training.trainer import Trainer

T = TypeVar("T")

IMAGE_KNOBS = (
    "ask.questions_per_image",
    "ask.max_new_tokens",
    "ask.spec_max_new_tokens",
    "solve.max_new_tokens",
)
"""Settings that the memory for one image grows with."""

MEMORY_KNOBS = ("images_per_step", "generate.prompts_per_step", "generate.candidates", *IMAGE_KNOBS)
"""Settings that a step's memory grows with."""


def state_of(trainer: Trainer) -> dict[str, Any]:
    """The plain part of the state, as ``state.json`` of a checkpoint holds it; no tensor, no random stream."""
    return {
        "betas": {role.value: control.beta for role, control in trainer.betas.items()},
        "replay_floors": {role.value: floor.nats for role, floor in trainer.floors.items()},
        "window": trainer.window.state(),
        "baseline": trainer.baseline.value,
        "monitor": trainer.monitor.state(),
        "pool": trainer.pool.state(),
        "nonfinite_in_a_row": trainer.nonfinite_in_a_row,
        "seconds": trainer.seconds,
        "images_at_once": dict(trainer.images_at_once),
    }


def save(trainer: Trainer) -> CheckpointError | None:
    """Write the checkpoint of the last finished step; every process must call this.

    A disk that is full costs no run: the error is shown and returned, the older checkpoints stay, and the next one is
    another try. After a rollback nothing is saved until the alarms that caused it have stayed silent over a full
    window, so that no checkpoint holds a collapse; a resumed run takes the same way again.
    """
    if trainer.rolled_back_for and not trainer.monitor.all_clear(trainer.rolled_back_for):
        trainer.display.message(f"step {trainer.step} is not saved: too soon after a rollback")
        return None
    streams = trainer.processes.gather(as_json(random_state()))
    problem = _write(trainer, streams[1:]) if trainer.processes.is_main else None
    if not trainer.processes.gather(problem is not None)[0]:
        trainer.rolled_back_for = ()
    return problem


def _write(trainer: Trainer, streams: Sequence[dict[str, Any]] = ()) -> CheckpointError | None:
    """``streams``: the global generators of the other processes, by rank; those left out start from the seed again."""
    state = state_of(trainer) | {"random_of_others": list(streams)}
    try:
        checkpoint.save_checkpoint(
            trainer.folder.checkpoints, trainer.step, trainer.backbone, trainer.optimizers, state
        )
    except CheckpointError as error:
        trainer.display.message(f"warning: {error}")
        return error
    return None


def resume(trainer: Trainer) -> None:
    """Set the state of the newest good checkpoint, or leave a run that wrote none at its start. Says what it does.

    Metrics of later steps are removed: these steps are taken again.

    Raises:
        CheckpointError: there are checkpoints and none is good, or the good one does not fit this run.
    """
    folder = trainer.folder.checkpoints
    if checkpoint.steps(folder):
        found, state, errors = checkpoint.newest_good(folder)
        for error in errors:
            trainer.display.message(f"{error.what}: {error.why}; using {found.name}")
        checkpoint.restore(found, trainer.backbone, trainer.optimizers)
        _set_plain(trainer, state, str(found))
        _restore_random(trainer.processes.rank, found, state)
        trainer.step = state["step"]
        trainer.display.message(f"resuming after step {trainer.step} from {found}")
    else:
        trainer.display.message(f"{trainer.folder.path} has no checkpoint yet; starting again from step 1")
    if trainer.processes.is_main:
        trainer.folder.truncate_metrics(trainer.step)


def _restore_random(rank: int, found: Path, state: Mapping[str, Any]) -> None:
    if rank == 0:
        checkpoint.restore_random(found, state)
        return
    with checkpoint.fitting(str(found)):
        others = state.get("random_of_others", [])
        if rank <= len(others):  # a process that the saved run did not have keeps its fresh seed
            set_random_state(from_json(others[rank - 1]))


def roll_back(trainer: Trainer, alarms: list[str]) -> int | None:
    """Give the roles the weights, moments and controls of the newest good checkpoint; the steps and images go on.

    So the following steps see other images under other seeds. The monitor forgets, hence needs a full window to ring
    again.

    Returns:
        the step of the checkpoint; None, with nothing changed, if there is none, or if the run was rolled back before
        and has saved nothing since: going back again would only repeat what happened.
    """
    if trainer.rolled_back_for or not checkpoint.steps(trainer.folder.checkpoints):
        return None
    found, state, _ = checkpoint.newest_good(trainer.folder.checkpoints)
    checkpoint.restore(found, trainer.backbone, trainer.optimizers)
    kept = state_of(trainer)
    goes_on = ("pool", "seconds", "images_at_once", "replay_floors")
    now = {key: kept[key] for key in goes_on} | {"monitor": {}, "nonfinite_in_a_row": 0}
    _set_plain(trainer, {**state, **now}, str(found))
    trainer.rolled_back_for = tuple(alarms)
    step: int = state["step"]
    return step


def whole_step(trainer: Trainer, kind: Kind, roles: Collection[Role], take: Callable[[], T]) -> T:
    """What ``take`` returns, which takes a step that updates ``roles``.

    If it fails, the state of the step before is put back, bit for bit, and saved. With ``optimizer.micro_batch=auto`` a
    step that runs out of memory is first taken again, with half as many images at a time, until it works on one.

    Raises:
        OutOfMemory: names the settings that help. Any other error is passed on.
    """
    state, streams = state_of(trainer), random_state()
    optimizers = [trainer.optimizers[role] for role in roles]
    weights = [[p.detach().to("cpu", copy=True) for p in o.parameters.values()] for o in optimizers]
    moments = [o.state() for o in optimizers]
    while True:
        try:
            return take()
        except Exception as error:
            if lacking := is_out_of_memory(error):
                if isinstance(trainer.backbone, CausalBackbone) and trainer.backbone.compiled is not None:
                    trainer.backbone.compiled.release()
                _let_go(error)
            for optimizer, old_weights, old_moments in zip(optimizers, weights, moments, strict=True):
                with torch.no_grad():
                    for parameter, before in zip(optimizer.parameters.values(), old_weights, strict=True):
                        parameter.copy_(before)
                optimizer.restore(old_moments)
            _set_plain(trainer, state, "the step before")
            set_random_state(streams)
            fewer = _fewer(trainer, kind) if lacking else 0
            if not fewer:
                if trainer.processes.is_main:
                    _write(trainer)  # not together with the others: perhaps one of them is gone
                if lacking:
                    alone = trainer.config.optimizer.micro_batch == "auto"
                    raise out_of_memory(f"step {trainer.step + 1}", alone=alone) from error
                raise
        trainer.images_at_once[kind] = state["images_at_once"][kind] = fewer
        many = f"{fewer} image{'s' if fewer > 1 else ''} at a time"
        trainer.display.message(f"out of memory in step {trainer.step + 1}: going on with {many} in {kind} steps")


def _fewer(trainer: Trainer, kind: Kind) -> int:
    """Half as many images as a step of this kind works on at a time; 0 if that is one, or must not change."""
    if trainer.config.optimizer.micro_batch != "auto":
        return 0
    whole = images_in_step(kind, trainer.config)
    return min(trainer.images_at_once.get(kind, whole), whole) // 2


def _let_go(error: BaseException) -> None:
    """Free what a step that ran out of memory holds: its tensors live in the frames of the traceback."""
    link: BaseException | None = error
    while link is not None:
        traceback.clear_frames(link.__traceback__)
        link = link.__cause__ or link.__context__
    gc.collect()
    torch.cuda.empty_cache()


@contextmanager
def memory_problems(where: str) -> Iterator[None]:
    """Inside, the model runs outside of a step. Raises OutOfMemory for any error that says so."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if is_out_of_memory(error):
            raise out_of_memory(where) from error
        raise


def is_out_of_memory(error: BaseException) -> bool:
    """Whether ``error`` says that a device, or this machine, has no memory left."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error).lower()
    # the last is what cuBLAS and cuDNN say when they find no room for themselves
    says = ("out of memory", "not enough memory", "alloc_failed")
    return isinstance(error, RuntimeError) and any(words in text for words in says)


def out_of_memory(where: str, *, alone: bool = False) -> OutOfMemory:
    """The one message about memory; ``alone``: it was worked on one image at a time."""
    first = "" if alone else "optimizer.micro_batch=auto (1 with several processes), "
    knobs = ", ".join(IMAGE_KNOBS if alone else MEMORY_KNOBS)
    return OutOfMemory(
        f"out of memory in {where}" + (", with one image at a time" if alone else ""),
        "it needs more memory than the device has; the steps before it are saved",
        f"write {first}gradient_checkpointing=true or a lower {knobs} into config.yaml of the run and resume it, "
        "or resume it on a larger device",
    )


def _set_plain(trainer: Trainer, state: Mapping[str, Any], source: str) -> None:
    with checkpoint.fitting(source):
        for role, control in trainer.betas.items():
            control.beta = checkpoint.finite(state["betas"][role.value])
        floors = state.get("replay_floors", {})  # not in checkpoints of the first versions
        for role, floor in trainer.floors.items():
            nats = floors.get(role.value)
            floor.nats = None if nats is None else checkpoint.finite(nats)
        trainer.window.restore(checkpoint.finite(value) for value in state["window"])
        trainer.baseline.value = checkpoint.finite(state["baseline"])
        trainer.monitor.restore(
            {str(name): [checkpoint.finite(value) for value in values] for name, values in state["monitor"].items()}
        )
        trainer.pool.restore(state["pool"])
        trainer.nonfinite_in_a_row = int(state["nonfinite_in_a_row"])
        trainer.seconds = checkpoint.finite(state["seconds"])
        sizes = checked_sizes(state.get("images_at_once", {}))  # not in checkpoints of the first versions
        trainer.images_at_once = sizes if trainer.config.optimizer.micro_batch == "auto" else {}
