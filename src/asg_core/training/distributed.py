"""One run on several processes: who does what, what they tell each other, and that they agree.

Every process holds the frozen base and all adapters. The images of a step are dealt out; each process samples for its
share, the records (text and numbers, no pixels) are gathered, and from there on every process computes the same
rewards, advantages and metrics. Gradients are summed in ``optimizer``. docs/scaling.md has the launch lines.

Control messages are JSON over gloo, whatever the device; nothing is unpickled.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import fields
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import DistributedType, GradientAccumulationPlugin, InitProcessGroupKwargs, parse_flag_from_env
from PIL import Image

from asg_core.backbones.interface import ImageRequest, ImageSample, TextRequest, TextSample
from asg_core.data.image_pool import PoolImage
from asg_core.errors import ConfigError, ProcessError
from asg_core.method.answers import Vote
from asg_core.method.context import Gather
from asg_core.method.prompts import Spec
from asg_core.method.records import Answer, Candidate, GenerationItem, Question, SpecQuestion, UnderstandingItem
from asg_core.method.rewards import ProposerReward

T = TypeVar("T")

CONTROL_TIMEOUT = timedelta(hours=6)
"""How long a process waits for the others' records: longer than any evaluation, which the first process runs alone. A
process that dies is noticed at once, because its connections close."""

DATA_TIMEOUT = timedelta(minutes=30)
"""How long a process waits in a gradient sum: longer than the backward pass of the largest share."""

ELSEWHERE = Image.new("RGB", (1, 1))
"""Stands for an image whose pixels another process has."""

_STAYS = {"image": ELSEWHERE, "trajectory": {}, "token_logprobs": None, "greedy": None, "mine": False}
"""Fields of records that are not sent, and what stands there in the other processes."""

_TYPE = "\n"
"""Key of a record's type: no field has this name, and no label of a vote a line break."""

_UNDERSTANDING = (UnderstandingItem, Question, Answer, TextSample, TextRequest, Vote, ProposerReward, PoolImage)
_GENERATION = (GenerationItem, Spec, SpecQuestion, Candidate, ImageSample, ImageRequest)
_RECORDS: dict[str, Any] = {record.__name__: record for record in (*_UNDERSTANDING, *_GENERATION)}


def launched_rank() -> int:
    """Rank that a launcher gave to this process; 0 without one. Known before any process group exists."""
    return int(os.environ.get("RANK", "0")) if launched_processes() > 1 else 0


def launched_processes() -> int:
    """How many processes a launcher started; 1 without one."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def base_is_sharded() -> bool:
    """Whether the launcher asks for FSDP, which is used for the frozen base only (``fsdp``)."""
    return bool(parse_flag_from_env("ACCELERATE_USE_FSDP"))


def start_accelerator(device: str, trackers: Sequence[str], folder: Path) -> Accelerator:
    """The Accelerator of this process, joined to the others that the launcher started.

    Precision, gradient accumulation and engines that a launcher's configuration may name are not used: adapters are
    float32 over a frozen base, and ``optimizer.micro_batch`` accumulates.

    Args:
        device: as ``resolve_device`` returns it; several processes take "cpu" or "cuda", one device each.

    Raises:
        ConfigError: the device cannot be shared by several processes, or the launcher asks for another engine.
        ProcessError: the other processes do not answer.
    """
    if launched_processes() > 1 and device not in ("cpu", "cuda"):
        raise ConfigError(
            f"device={device} does not fit {launched_processes()} processes",
            "each process takes the device of its own local rank",
            "use device=auto, device=cuda or device=cpu with a launcher",
        )
    local = int(os.environ.get("LOCAL_RANK", "0"))
    if launched_processes() > 1 and device == "cuda" and local >= torch.cuda.device_count():
        raise ConfigError(
            f"there is no GPU for local process {local}",
            f"this machine shows {torch.cuda.device_count()}",
            "launch at most one process per GPU",
        )
    with peers(launched_rank()) if launched_processes() > 1 else nullcontext():
        accelerator = Accelerator(
            cpu=device == "cpu",
            mixed_precision="no",
            gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
            log_with=list(trackers) or None,
            project_dir=str(folder),
            kwargs_handlers=[InitProcessGroupKwargs(timeout=DATA_TIMEOUT)],
        )
    known = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU, DistributedType.FSDP)
    if accelerator.distributed_type not in known or (base_is_sharded() and os.environ.get("FSDP_VERSION") != "2"):
        raise ConfigError(
            f"the launcher asks for {accelerator.distributed_type.value}, FSDP version "
            f"{os.environ.get('FSDP_VERSION', 'none')}",
            "the frozen base is either whole in every process or sharded by FSDP2",
            "launch with torchrun, accelerate launch --multi_gpu, or accelerate launch --use_fsdp --fsdp_version 2",
        )
    return accelerator


class Processes:
    """The processes of one run, seen from one of them. ``Processes()`` is a run in one process: nothing is sent.

    Where the base is sharded no process can run a layer without the others, so that all of them do all the work.

    Args:
        accelerator: joined to the others; None for one process.

    Attributes:
        rank: of this process, in [0, count).
        count: number of processes.
        sharded: whether they hold one base together.
        stop_requested: set it to ask all processes to stop; the next :meth:`gather` tells them.
    """

    def __init__(self, accelerator: Accelerator | None = None) -> None:
        self.rank = accelerator.process_index if accelerator else 0
        self.count = accelerator.num_processes if accelerator else 1
        self.sharded = self.count > 1 and base_is_sharded()
        self.stop_requested = False
        self._stop_agreed = False
        if self.count > 1:
            with peers(self.rank):
                self._group = dist.new_group(backend="gloo", timeout=CONTROL_TIMEOUT)

    @property
    def is_main(self) -> bool:
        """Whether this process writes files, shows progress and evaluates."""
        return self.rank == 0

    @property
    def stopping(self) -> bool:
        """Whether the run is to stop after this step: the same answer in all processes, as of the last gather."""
        return self.stop_requested if self.count == 1 else self._stop_agreed

    def share(self, total: int) -> range:
        """Which of ``total`` things are this process's: neighbours, as many as others have or one more or less.

        The first processes have more, so process 0 is never idle. All things, where the base is sharded.
        """
        if self.sharded:
            return range(total)
        bounds = [-(-total * rank // self.count) for rank in (self.rank, self.rank + 1)]
        return range(*bounds)

    def gather(self, value: T) -> list[T]:
        """The ``value`` of every process by rank, JSON data; every process must call this, and waits for the others.

        Raises:
            ProcessError: a process has ended.
        """
        if self.count == 1:
            return [value]
        message = json.dumps({"stop": self.stop_requested, "value": value}).encode()
        with peers(self.rank):
            sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(self.count)]
            dist.all_gather(sizes, torch.tensor([len(message)]), group=self._group)
            padded = message.ljust(max(map(int, sizes)))  # with blanks, which end no JSON text
            mine = torch.frombuffer(bytearray(padded), dtype=torch.uint8)
            rows = [torch.empty_like(mine) for _ in sizes]
            dist.all_gather(rows, mine, group=self._group)
        messages = [json.loads(row.numpy().tobytes()) for row in rows]
        self._stop_agreed = self._stop_agreed or any(m["stop"] for m in messages)
        return [m["value"] for m in messages]

    def leave(self) -> None:
        """Part from the others at the end of a good run. A process that fails just ends, so that they notice."""
        if self.count > 1:
            self.gather(None)
            dist.destroy_process_group()


@contextmanager
def peers(rank: int) -> Iterator[None]:
    """Around a collective and nothing else: torch reports its failure as RuntimeError, here it becomes ProcessError."""
    try:
        yield
    except RuntimeError as error:
        raise ProcessError(
            f"another process of this run has ended or does not answer (noticed by process {rank})",
            " ".join(str(error).split())[:200],
            "read the message of the process that ended first; 'asg train resume=DIR' goes on from the last checkpoint",
        ) from error


class ProcessGather(Gather):
    """Joins the shares of all processes of a run: their records go around as JSON.

    Pixels, trajectories and greedy answers stay with the process that made them: nothing computed from the records of
    other processes (rewards, advantages, metrics) needs them.
    """

    def __init__(self, processes: Processes) -> None:
        self._processes = processes

    def __call__(self, items: Sequence[T]) -> list[T]:
        """Return the items of all processes in the order of the step's images; own ones are the objects given."""
        processes = self._processes
        if processes.count == 1 or processes.sharded:
            return list(items)
        shares: list[Sequence[T]] = [
            items if rank == processes.rank else json.loads(text, object_hook=_from_json)
            for rank, text in enumerate(processes.gather(json.dumps(items, default=_as_json)))
        ]
        return [item for share in shares for item in share]

    def before(self, count: int) -> int:
        """Return the sum of ``count`` over the shares before this process's: where its numbering starts."""
        return 0 if self._processes.sharded else sum(self._processes.gather(count)[: self._processes.rank])


def _as_json(value: Any) -> dict[str, Any]:
    """What ``json`` is given for an object that it does not know: a record of a step, or a path."""
    if isinstance(value, Path):
        return {_TYPE: "Path", "value": str(value)}
    names = [field.name for field in fields(value) if field.name not in _STAYS]
    return {_TYPE: type(value).__name__, **{name: getattr(value, name) for name in names}}


def _from_json(data: dict[str, Any]) -> Any:
    """What :func:`_as_json` was given, with lists for tuples."""
    name = data.pop(_TYPE, None)
    if name is None:
        return data
    if name == "Path":
        return Path(data["value"])
    record = _RECORDS[name]
    return record(**data, **{field.name: _STAYS[field.name] for field in fields(record) if field.name in _STAYS})
