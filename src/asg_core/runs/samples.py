"""Samples of a step as a person reads them: one JSON file and the images beside it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL.Image import Image, Resampling

from asg_core.method.records import GenerationItem, Question, UnderstandingItem
from asg_core.runs.folder import number, write_json

MAX_SIDE = 512
"""Written images are scaled down to this many pixels on the long side."""


def write_samples(folder: Path, step: int, items: Sequence[UnderstandingItem | GenerationItem]) -> None:
    """Write ``step-NNNNNN.json`` and ``step-NNNNNN/*.png`` below ``folder`` (docs/run_folder.md has the keys)."""
    name = f"step-{step:06d}"
    (folder / name).mkdir(exist_ok=True)
    kind, rows = "understanding", []
    for i, item in enumerate(items):
        prefix = f"{name}/{i:02d}"
        row = {"image": _save(item.source.image, folder, f"{prefix}.png"), "source": str(item.source.path)}
        if isinstance(item, UnderstandingItem):
            rows.append(row | {"questions": [_question(q) for q in item.questions]})
        else:
            kind = "generation"
            rows.append(row | _generation(item, folder, prefix))
    write_json(folder / f"{name}.json", {"step": step, "kind": kind, "items": rows})


def _save(image: Image, folder: Path, name: str) -> str:
    small = image.copy()
    small.thumbnail((MAX_SIDE, MAX_SIDE), Resampling.LANCZOS)
    small.save(folder / name)
    return name


def _question(q: Question) -> dict[str, Any]:
    vote = q.vote
    return {
        "completion": q.completion.text,
        "question": q.text,
        "gate": q.gate,
        "answers": [
            {
                "framing": a.framing,
                "text": a.sample.text,
                "label": a.label,
                "logprob": number(sum(a.sample.logprobs)),
                "reward": number(a.reward),
                "advantage": number(a.advantage),
            }
            for a in q.answers
        ],
        "votes": dict(vote.shares) if vote else None,
        "majority": vote.majority if vote else None,
        "tied": vote.tied if vote else None,
        "f": vote.majority_share if vote else None,
        "margin": vote.margin if vote else None,
        "h_sc": vote.entropy if vote else None,
        "greedy": q.greedy.text if q.greedy else None,
        "token_entropies": [number(h) for h in q.greedy.entropies] if q.greedy else None,
        "ste_raw": q.ste,
        "ste_percentile": q.ste_percentile,
        "reward": number(q.reward),
        "reward_reason": q.scored.reason if q.scored else None,
        "advantage": number(q.advantage),
        "learned": q.learned,
    }


def _generation(item: GenerationItem, folder: Path, prefix: str) -> dict[str, Any]:
    return {
        "tries": item.tries,
        "skipped": item.spec is None,
        "prompt": item.spec.prompt if item.spec else None,
        "quality": item.quality,
        "questions": [
            {
                "question": q.text,
                "expected": q.expected,
                "answers": [s.text for s in q.samples],
                "reference": q.reference,
                "kept": q.reference is not None,
            }
            for q in item.questions
        ],
        "candidates": [
            {
                "image": _save(c.sample.image, folder, f"{prefix}-{j}.png"),
                "seed": c.sample.request.seed,
                "caption": c.caption,
                "reward": number(c.reward),
                "s_fid": number(c.fidelity),
                "s_cyc": number(c.cycle),
                "s_div": number(c.diversity),
                "s_ctr": c.contradiction,
                "signal": c.signal,
                "answers": [
                    {"question": q.text, "answers": labels, "majority": majority}
                    for q, labels, majority in zip(item.kept, c.labels, c.majorities, strict=True)
                ],
            }
            for j, c in enumerate(item.candidates)
        ],
    }
