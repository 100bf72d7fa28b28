"""Records of a step as JSON, so that every process of a run has all of them (``distributed``).

Pixels, trajectories and greedy answers stay with the process that made them: nothing computed from the records of other
processes (rewards, advantages, metrics) needs them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import fields
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

_TYPE = "\n"
"""Key of a record's type: no field has this name, and no label of a vote a line break."""

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
        shares: list[Sequence[Item]] = [
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
