"""Records of a step as JSON, so that every process of a run has all of them (``distributed``).

Pixels, trajectories and greedy answers stay with the process that made them: nothing computed from the records of other
processes (rewards, advantages, metrics) needs them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from PIL import Image

from asg_core.backbones.interface import ImageRequest, ImageSample, TextRequest, TextSample
from asg_core.data.image_pool import PoolImage
from asg_core.method.answers import Vote
from asg_core.method.context import Gather
from asg_core.method.prompts import Spec
from asg_core.method.records import (
    Answer,
    Candidate,
    GenerationItem,
    Kind,
    Question,
    SpecQuestion,
    UnderstandingItem,
)
from asg_core.method.rewards import GATED
from asg_core.training.distributed import Processes

ELSEWHERE = Image.new("RGB", (1, 1))
"""Stands for an image whose pixels another process has."""

Item = TypeVar("Item")


class ProcessGather(Gather):
    """Joins the shares of all processes of a run.

    Args:
        processes: of the run.
        kind: of the step, hence of its items.
    """

    def __init__(self, processes: Processes, kind: Kind) -> None:
        self._processes = processes
        self._pack, self._unpack = _RECORDS[kind]

    def __call__(self, items: Sequence[Item]) -> list[Item]:
        """Return the items of all processes in the order of the step's images; own ones are the objects given."""
        processes = self._processes
        if processes.count == 1 or processes.sharded:
            return list(items)
        shares = processes.gather([self._pack(item) for item in items])
        return [
            item
            for rank, share in enumerate(shares)
            for item in (items if rank == processes.rank else [self._unpack(row) for row in share])
        ]

    def before(self, count: int) -> int:
        """Return the sum of ``count`` over the shares before this process's."""
        return self._processes.sum_before(count)


def _pack_text(sample: TextSample) -> dict[str, Any]:
    row = {name: getattr(sample, name) for name in TextSample.__dataclass_fields__ if name != "request"}
    return {**row, "prompt": sample.request.prompt, "seed": sample.request.seed}


def _unpack_text(row: dict[str, Any]) -> TextSample:
    request = TextRequest(row.pop("prompt"), ELSEWHERE, row.pop("seed"))
    fields: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in row.items()}
    return TextSample(request, **fields)


def _pack_understanding(item: UnderstandingItem) -> dict[str, Any]:
    return {
        "source": str(item.source.path),
        "questions": [
            {
                "completion": _pack_text(q.completion),
                "text": q.text,
                "gate": q.gate,
                "answers": [[a.framing, _pack_text(a.sample), a.label] for a in q.answers],
                "vote": asdict(q.vote) if q.vote else None,
                "ste": q.ste,
            }
            for q in item.questions
        ],
    }


def _unpack_understanding(row: dict[str, Any]) -> UnderstandingItem:
    questions = [
        Question(
            _unpack_text(q["completion"]),
            q["text"],
            q["gate"],
            answers=[Answer(framing, _unpack_text(sample), label) for framing, sample, label in q["answers"]],
            vote=Vote(**{**q["vote"], "labels": tuple(q["vote"]["labels"])}) if q["vote"] else None,
            ste=q["ste"],
            scored=GATED if q["gate"] is not None else None,
        )
        for q in row["questions"]
    ]
    return UnderstandingItem(PoolImage(Path(row["source"]), ELSEWHERE), questions, mine=False)


_CANDIDATE = ("labels", "majorities", "caption", "fidelity", "cycle", "diversity", "contradiction")


def _pack_generation(item: GenerationItem) -> dict[str, Any]:
    return {
        "source": str(item.source.path),
        "tries": item.tries,
        "spec": asdict(item.spec) if item.spec else None,
        "quality": item.quality,
        "questions": [
            [q.text, q.expected, [_pack_text(s) for s in q.samples], q.labels, q.reference] for q in item.questions
        ],
        "candidates": [
            {"prompt": c.sample.request.prompt, "seed": c.sample.request.seed, **{k: getattr(c, k) for k in _CANDIDATE}}
            for c in item.candidates
        ],
    }


def _unpack_generation(row: dict[str, Any]) -> GenerationItem:
    spec = row["spec"]
    return GenerationItem(
        PoolImage(Path(row["source"]), ELSEWHERE),
        row["tries"],
        Spec(spec["prompt"], tuple((q, a) for q, a in spec["questions"]), spec["raw_count"]) if spec else None,
        [
            SpecQuestion(text, expected, [_unpack_text(s) for s in samples], labels, reference)
            for text, expected, samples, labels, reference in row["questions"]
        ],
        row["quality"],
        [
            Candidate(ImageSample(ImageRequest(c.pop("prompt"), c.pop("seed")), ELSEWHERE, {}), **c)
            for c in row["candidates"]
        ],
        mine=False,
    )


_RECORDS: dict[Kind, tuple[Callable[[Any], dict[str, Any]], Callable[[Any], Any]]] = {
    "understanding": (_pack_understanding, _unpack_understanding),
    "generation": (_pack_generation, _unpack_generation),
}
