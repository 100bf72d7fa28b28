"""Running out of memory: take the step again with fewer images at a time, or stop with everything as it was."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, contextmanager

import torch
from accelerate.utils.memory import clear_device_cache

from asg_core.backbones.interface import Role
from asg_core.config.schema import RunConfig
from asg_core.errors import OutOfMemory
from asg_core.method.records import Kind
from asg_core.training.state import TrainState

IMAGE_KNOBS = ("ask.questions_per_image", "ask.max_new_tokens", "ask.spec_max_new_tokens", "solve.max_new_tokens")
"""Settings that the memory for one image grows with."""

MEMORY_KNOBS = ("images_per_step", "generate.prompts_per_step", "generate.candidates", *IMAGE_KNOBS)
"""Settings that a step's memory grows with."""


class MemoryRetry:
    """Takes steps so that a failed one leaves nothing behind.

    If a step fails, the state before it is put back, bit for bit, and saved. With ``optimizer.micro_batch=auto`` a step
    that runs out of memory is first taken again, with half as many images at a time, until it works on one.
    ``save`` writes a checkpoint of ``state`` without the other processes, ``say`` is called with a line for a person.
    """

    def __init__(
        self, config: RunConfig, state: TrainState, save: Callable[[TrainState], object], say: Callable[[str], None]
    ) -> None:
        self.config, self.state, self.save, self.say = config, state, save, say

    def attempts(self, kind: Kind, roles: Collection[Role]) -> Iterator[AbstractContextManager[None]]:
        """Yield contexts to take one and the same step in, until one ends well. The step updates ``roles``.

        Raises:
            OutOfMemory: from a context, if no smaller step is left to try; it names the settings that help. Any other
                error of the step is passed on.
        """
        self._done = False
        while not self._done:
            yield self._attempt(kind, roles)

    @contextmanager
    def _attempt(self, kind: Kind, roles: Collection[Role]) -> Iterator[None]:
        """Inside, a step is taken. If it fails its state is put back; the error ends here if a smaller step is left."""
        state, set_back = self.state, self.state.snapshot(roles)
        try:
            yield
            self._done = True
        except Exception as error:
            lacking = is_out_of_memory(error)
            if lacking:
                state.backbone.release_memory()
                _let_go(error)
            set_back()
            step = f"step {state.step + 1}"
            if lacking and (fewer := self._fewer(kind)):
                state.images_at_once[kind] = fewer
                many = f"{fewer} image{'s' if fewer > 1 else ''} at a time"
                self.say(f"out of memory in {step}: going on with {many} in {kind} steps")
                return
            self.save(state)
            if lacking:
                raise out_of_memory(step, alone=self.config.optimizer.micro_batch == "auto") from error
            raise

    def _fewer(self, kind: Kind) -> int:
        """Return half as many images as a step works on at a time; 0 if that is one, or must not change."""
        config = self.config
        if config.optimizer.micro_batch != "auto":
            return 0
        # the most that one call of a step works on: the images of the pool, or all candidates
        drawn = config.generate.prompts_per_step * config.generate.candidates
        whole = config.images_per_step if kind == "understanding" else drawn
        return min(self.state.images_at_once.get(kind, whole), whole) // 2


def _let_go(error: BaseException) -> None:
    """Free what a step that ran out of memory holds: its tensors live in the frames of the traceback."""
    link: BaseException | None = error
    while link is not None:
        traceback.clear_frames(link.__traceback__)
        link = link.__cause__ or link.__context__
    clear_device_cache(garbage_collection=True)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether ``error`` says that a device, or this machine, has no memory left."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error).lower()
    # the last is what cuBLAS and cuDNN say when they find no room for themselves
    says = ("out of memory", "not enough memory", "alloc_failed")
    return isinstance(error, RuntimeError) and any(words in text for words in says)


def out_of_memory(where: str, *, alone: bool = False) -> OutOfMemory:
    """Return the one message about memory; ``alone``: it was worked on one image at a time."""
    first = "" if alone else "optimizer.micro_batch=auto (1 with several processes), "
    knobs = ", ".join(IMAGE_KNOBS if alone else MEMORY_KNOBS)
    return OutOfMemory(
        f"out of memory in {where}" + (", with one image at a time" if alone else ""),
        "it needs more memory than the device has; the steps before it are saved",
        f"write {first}gradient_checkpointing=true or a lower {knobs} into config.yaml of the run and resume it, "
        "or resume it on a larger device",
    )
