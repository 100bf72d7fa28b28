"""The end of a run: evaluation before and after, final adapters, summary.json and the report."""

from __future__ import annotations

import json
import resource
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from asg_core.backbones.interface import Role
from asg_core.backbones.registry import resolve
from asg_core.config.schema import RunConfig
from asg_core.evaluation.compare import compare
from asg_core.evaluation.items import EvalItem, EvaluationRequest
from asg_core.evaluation.protocol import evaluation_protocol
from asg_core.evaluation.store import AFTER, BEFORE, store
from asg_core.runs.folder import read_json_lines, write_json
from asg_core.runs.model_card import write_card
from asg_core.runs.report.render import render_report
from asg_core.training.memory import is_out_of_memory, out_of_memory
from asg_core.training.schedule import kinds
from asg_core.training.setup import RunSetup
from asg_core.training.state import TrainState


@dataclass(frozen=True)
class RunSummary:
    """What a run did.

    Attributes:
        out: the run folder.
        steps_done: steps in all, earlier parts of a resumed run included.
        seconds: time spent in steps, evaluation not counted.
        interrupted: whether it ended before its last step.
        rows: before/after comparison rows, or None without evaluation.
        report: path of report.html.
        never_updated: roles that the run was to train and whose adapters are as they were made, without effect.
    """

    out: Path
    steps_done: int
    seconds: float
    interrupted: bool
    rows: list[dict[str, Any]] | None
    report: Path
    never_updated: tuple[Role, ...]


def evaluate(run: RunSetup, *, trained: bool) -> list[EvalItem] | None:
    """Evaluate the base or the trained model; None if the backbone has no evaluation. A stored "before" is reused.

    With several processes the first one does it and the others, which get None, go on to where they wait for it; where
    the base is sharded all of them do it.
    """
    target = run.manifest.evaluation
    main = run.processes.is_main
    if target is None or not run.config.evaluate or not (main or run.processes.sharded):
        return None
    file = run.folder.evaluation / ("after.json" if trained else "before.json")
    if not trained and file.is_file():
        return [EvalItem(**row) for row in json.loads(file.read_text(encoding="utf-8"))]
    with run.display.task("evaluating after" if trained else "evaluating before") as progress:
        request = EvaluationRequest(run.backbone, trained, run.config.seed, None, progress)
        try:
            items: list[EvalItem] = resolve(target)(request)
        except Exception as error:
            if is_out_of_memory(error):
                raise out_of_memory("the evaluation") from error
            raise
    if main:
        protocol = evaluation_protocol(target, request, items, run.config)
        store(run.folder.evaluation, AFTER if trained else BEFORE, items, protocol)
    return items


def finish_run(
    run: RunSetup, state: TrainState, before: list[EvalItem] | None, after: list[EvalItem] | None, interrupted: bool
) -> RunSummary:
    """Save the adapters, write summary.json and report.html, all by the first process."""
    folder, idle = run.folder, _never_updated(run.config, state)
    rows = None if before is None or after is None else [asdict(row) for row in compare(before, after)]
    report = folder.path / "report.html"
    summary = RunSummary(folder.path, state.step, state.seconds, interrupted, rows, report, idle)
    if not run.processes.is_main:
        return summary
    for role in Role:
        run.backbone.save_role(role, folder.adapters / role.value)
    write_json(
        folder.summary,
        {
            "backbone": run.config.backbone,
            "steps_done": state.step,
            "seconds": round(state.seconds, 3),
            "interrupted": interrupted,
            "processes": run.processes.count,
            "never_updated": [role.value for role in idle],
            "peak_memory_bytes": _peak_memory(run.backbone.device),
            "asg_core": version("asg-core"),
            **{name: version(name) for name in ("torch", "transformers", "peft")},
            "evaluation": rows,
        },
    )
    write_card(folder, run.manifest, run.config, len(run.pool))
    if idle and not interrupted:
        run.display.message(_why_idle(idle, read_json_lines(folder.metrics)))
    render_report(folder.path)
    return summary


def _never_updated(config: RunConfig, state: TrainState) -> tuple[Role, ...]:
    planned = kinds(config.steps, config.schedule)
    return tuple(
        role
        for role, optimizer in state.optimizers.items()
        if ("generation" if role is Role.GENERATOR else "understanding") in planned
        and optimizer.lr > 0
        and not optimizer.has_stepped
    )


def _why_idle(idle: Sequence[Role], records: Sequence[Mapping[str, Any]]) -> str:
    """Return what the steps had to learn from, as one line for a person."""
    failed, questions, skipped, specs = (
        sum(record.get(key) or 0 for record in records) for key in ("gate_failures", "questions", "skipped", "specs")
    )
    parts = [f"never updated: {', '.join(role.value for role in idle)}"]
    if questions:
        parts.append(f"{failed} of {questions} completions were no question")
    if skipped + specs:
        parts.append(f"{skipped} of {skipped + specs} images got no usable spec")
    return "; ".join(parts)


def _peak_memory(device: torch.device) -> int:
    """Bytes: of the CUDA allocator on cuda, of the process elsewhere."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
