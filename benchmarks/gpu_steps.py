"""Whole training steps of one model: batched, at several images, captured, and call by call."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from accelerate import Accelerator
from gpu_bench import SHARE, Bench, Lengths
from gpu_models import pictures
from gpu_rows import GIB, Row, against, timed, wait
from one_by_one import OneByOne, separate
from scripted import Scripted

from asg_core.config import RunConfig
from asg_core.entropy import RollingPercentile
from asg_core.images import PoolImage
from asg_core.optimiser import RoleOptimiser
from asg_core.planning import generation_memory, generation_phases, seconds, understanding_memory, understanding_phases
from asg_core.policy import AdaptiveKl, EmaBaseline
from asg_core.roles import Backbone, Role, TextSample
from asg_core.steps.generation import generation_step
from asg_core.steps.generator_update import update_generator
from asg_core.steps.understanding import understanding_step
from asg_core.steps.update import UpdateReport, proposer_groups, solver_groups, update_text_role

Kind = Literal["understanding", "generation"]
Watch = Callable[[str], AbstractContextManager[object]]
"""Given "sampling" or "update"; entered around that part of a step."""

REPEAT_BELOW = 5.0
"""Seconds; what took less is measured again, warm."""

LONG_BARS = {"eager": 12.0, "captured": 5.5, "an image of 8": 3.5}
"""Seconds of BLIP3o's understanding step with 1,024 image tokens and 250 decoding passes."""

SEQUENTIAL_BARS = {1: 4.0, 8: 18.0}
"""Least times that a sequential understanding step takes longer, by images."""


@dataclass(frozen=True)
class Step:
    """A step to measure: its section, kind, number of images, workload, and how decoding runs."""

    section: str
    kind: Kind
    count: int
    lengths: Lengths
    how: str = "eager"


def step(bench: Bench, what: Step) -> Iterator[Row]:
    """A whole step with its updates, the second of two if the first was quick, and what it was planned to need."""
    config = _config(bench, what.kind, what.count, what.lengths)
    planned = _planned(bench, what.kind, what.count, what.lengths, config)
    if bench.memory is not None and planned > bench.memory:
        why = f"does not fit: planned {planned / GIB:.0f} GiB, there are {bench.memory / GIB:.0f}"
        yield Row(what.section, status="not run", note=why)
        return
    parts: dict[str, float] = {}

    @contextmanager
    def watch(part: str) -> Iterator[None]:
        wait(bench.device)
        start = time.perf_counter()
        yield
        wait(bench.device)
        parts[part] = time.perf_counter() - start

    def once() -> float:
        parts.clear()
        return timed(
            bench.device,
            lambda: take(bench, what.kind, what.count, what.lengths, bench.backbone, config=config, watch=watch),
        )

    value = once()
    value = once() if value < REPEAT_BELOW else value
    bench.took[what.section] = value
    size = (what.lengths.side, what.lengths.side)
    phases = (understanding_phases if what.kind == "understanding" else generation_phases)(
        bench.built.shape, config, size, what.count
    )
    micro = config.optimiser.micro_batch or "all"
    tokens = bench.built.shape.see(*size).tokens
    note = f"{what.how}; {tokens} image tokens, {what.lengths.ask}+{what.lengths.solve} new; {micro} groups a backward"
    row = Row(
        what.section,
        f"{what.count} images",
        value,
        "s",
        bound=seconds(phases, bench.rates, launches=False) if bench.rates else None,
        planned_gib=planned / GIB,
        note=note,
    )
    barred = bench.name == "blip3o" and what.kind == "understanding" and what.lengths == bench.long and not bench.tiny
    yield against(row, LONG_BARS[what.how] if barred and what.count == 1 else None)
    for part, spent in parts.items():
        yield Row(what.section, part, spent, "s")
    if what.count > 1:
        row = Row(what.section, "per image", value / what.count, "s")
        yield against(row, LONG_BARS["an image of 8"] if barred else None)


def sequential(bench: Bench, kind: Kind) -> Iterator[Row]:
    """The same step at one image, call by call, and how much longer it takes than the batched ones."""
    section = f"sequential {kind} step"
    config = _config(bench, kind, 1, bench.short)
    config = config.model_copy(update={"optimiser": config.optimiser.model_copy(update={"micro_batch": 1})})
    model = OneByOne(bench.backbone)
    value = timed(bench.device, lambda: take(bench, kind, 1, bench.short, model, config=config, regroup=separate))
    yield Row(section, "1 images", value, "s", note="one request a call, nothing kept, one backward a sample")
    for count, other in ((1, f"{kind} step"), (bench.many, f"{kind} step x{bench.many}")):
        if other in bench.took:
            row = Row(section, f"sequential / batched, {count} images", count * value / bench.took[other], "x")
            barred = kind == "understanding" and not bench.tiny
            yield against(row, SEQUENTIAL_BARS.get(count) if barred else None)


Groups = list[list[tuple[TextSample, float]]]


def take(
    bench: Bench,
    kind: Kind,
    count: int,
    lengths: Lengths,
    model: Backbone,
    *,
    config: RunConfig | None = None,
    watch: Watch = lambda part: nullcontext(),
    regroup: Callable[[Groups], Groups] = lambda groups: groups,
) -> None:
    """One step of ``count`` images and its updates.

    Raises:
        RuntimeError: an update did not move its adapter, so that it was not measured.
    """
    config = config or _config(bench, kind, count, lengths)
    images = [PoolImage(Path(f"{i}.png"), picture) for i, picture in enumerate(pictures(count, lengths.side))]
    scripted = Scripted(model, [image.image for image in images], config.solve.framings)
    accelerator = Accelerator(cpu=bench.device.type == "cpu")
    settings, policy = config.optimiser, config.policy

    def optimiser(role: Role) -> RoleOptimiser:
        return RoleOptimiser(model.trainable(role), 1e-6, settings.weight_decay, settings.max_grad_norm, accelerator)

    def learn(role: Role, groups: Groups) -> UpdateReport:
        beta = AdaptiveKl(policy.beta_start, policy.kl_target)
        return update_text_role(
            scripted, role, regroup(groups), optimiser(role), beta, config, floor=bench.floors[role]
        )

    if kind == "understanding":
        with watch("sampling"):
            items = understanding_step(scripted, images, config, 1, RollingPercentile(), EmaBaseline())
        with watch("update"):
            reports = {
                Role.PROPOSER: learn(Role.PROPOSER, proposer_groups(items)),
                Role.SOLVER: learn(Role.SOLVER, solver_groups(items)),
            }
    else:
        with watch("sampling"):
            drawn = generation_step(scripted, images, config, 1)
        with watch("update"):
            floor, generator = bench.floors[Role.GENERATOR], optimiser(Role.GENERATOR)
            reports = {Role.GENERATOR: update_generator(scripted, drawn, generator, config, 1, floor=floor)}
    idle = [role.value for role, report in reports.items() if not report.step.applied]
    if idle:
        raise RuntimeError(f"the update of the {' and '.join(idle)} changed nothing: {reports}")


def _config(bench: Bench, kind: Kind, count: int, lengths: Lengths) -> RunConfig:
    """Step settings; as many groups per backward pass as the plan says fit."""
    base = {
        "ask": {"max_new_tokens": lengths.ask, "spec_max_new_tokens": lengths.spec},
        "solve": {"max_new_tokens": lengths.solve, "caption_max_new_tokens": lengths.caption},
        "generate": bench.backbone.manifest.defaults.get("generate", {}),
        "images_per_step": count,
        "gradient_checkpointing": True,
    }
    for micro in (0, 12, 6, 3, 1):
        config = RunConfig.model_validate({**base, "optimiser": {"micro_batch": micro}})
        if bench.memory is None or _planned(bench, kind, count, lengths, config) <= SHARE * bench.memory:
            break
    return config


def _planned(bench: Bench, kind: Kind, count: int, lengths: Lengths, config: RunConfig) -> int:
    """Bytes at the largest moment, as counted, with the moments of the roles that such a step updates."""
    learning = {"understanding": {"lr_generator": 0.0}, "generation": {"lr_proposer": 0.0, "lr_solver": 0.0}}[kind]
    alone = config.model_copy(update={"optimiser": config.optimiser.model_copy(update=learning)})
    needs = understanding_memory if kind == "understanding" else generation_memory
    return needs(bench.built.shape, alone, (lengths.side, lengths.side), count).peak
