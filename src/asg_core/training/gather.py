"""Records of a step as JSON, so that every process of a run has all of them (``distributed``).

Pixels, trajectories and greedy answers stay with the process that made them: nothing computed from the records of other
processes (rewards, advantages, metrics) needs them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

from PIL import Image

from asg_core.backbones.interface import ImageRequest, ImageSample, TextRequest, TextSample
from asg_core.data.image_pool import PoolImage
from asg_core.method.answers import Vote
from asg_core.method.context import Gather
from asg_core.method.prompts import Spec
from asg_core.method.records import Answer, Candidate, GenerationItem, Question, SpecQuestion, UnderstandingItem
from asg_core.method.rewards import ProposerReward
from asg_core.training.distributed import Processes

ELSEWHERE = Image.new("RGB", (1, 1))
"""Stands for an image whose pixels another process has."""

_STAYS = {"image": ELSEWHERE, "trajectory": {}, "token_logprobs": None, "greedy": None, "mine": False}
"""Fields of records that are not sent, and what stands there in the other processes."""

_UNDERSTANDING = (UnderstandingItem, Question, Answer, TextSample, TextRequest, Vote, ProposerReward, PoolImage)
_GENERATION = (GenerationItem, Spec, SpecQuestion, Candidate, ImageSample, ImageRequest)
_RECORDS: dict[str, Any] = {record.__name__: record for record in (*_UNDERSTANDING, *_GENERATION)}

Item = TypeVar("Item")


class ProcessGather(Gather):
    """Joins the shares of all processes of a run."""

    def __init__(self, processes: Processes) -> None:
        self._processes = processes

    def __call__(self, items: Sequence[Item]) -> list[Item]:
        """Return the items of all processes in the order of the step's images; own ones are the objects given."""
        processes = self._processes
        if processes.count == 1 or processes.sharded:
            return list(items)
        shares = processes.gather([_pack(item) for item in items])
        return [
            item
            for rank, share in enumerate(shares)
            for item in (items if rank == processes.rank else [_unpack(row) for row in share])
        ]

    def before(self, count: int) -> int:
        """Return the sum of ``count`` over the shares before this process's: where its numbering starts."""
        return 0 if self._processes.sharded else sum(self._processes.gather(count)[: self._processes.rank])


def _pack(value: Any) -> Any:
    """``value`` as JSON data, where an object has one key, which says what it is."""
    match value:
        case list():
            return [_pack(inner) for inner in value]
        case tuple():
            return {"tuple": [_pack(inner) for inner in value]}
        case dict():
            return {"dict": {key: _pack(inner) for key, inner in value.items()}}
        case Path():
            return {"path": str(value)}
    if not is_dataclass(value):
        return value
    names = [field.name for field in fields(value) if field.name not in _STAYS]
    return {type(value).__name__: {name: _pack(getattr(value, name)) for name in names}}


def _unpack(data: Any) -> Any:
    """What :func:`_pack` was given."""
    if isinstance(data, list):
        return [_unpack(inner) for inner in data]
    if not isinstance(data, dict):
        return data
    ((what, content),) = data.items()
    match what:
        case "tuple":
            return tuple(_unpack(inner) for inner in content)
        case "dict":
            return {key: _unpack(inner) for key, inner in content.items()}
        case "path":
            return Path(content)
    record = _RECORDS[what]
    elsewhere = {field.name: _STAYS[field.name] for field in fields(record) if field.name in _STAYS}
    return record(**elsewhere, **{name: _unpack(inner) for name, inner in content.items()})
