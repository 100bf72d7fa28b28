"""One training step of a model with random weights and scripted texts, its updates included."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from PIL.Image import Image

from asg_core.backbones.interface import Backbone, Role
from asg_core.config.schema import RunConfig
from asg_core.data.image_pool import PoolImage
from asg_core.method.context import StepContext
from asg_core.method.generation import generation_step
from asg_core.method.generator_updates import update_generator
from asg_core.method.losses import AdaptiveKl, EmaBaseline
from asg_core.method.replay import NoiseFloor
from asg_core.method.token_entropy import RollingPercentile
from asg_core.method.understanding import understanding_step
from asg_core.method.updates import Group, Learner, UpdateReport, proposer_groups, solver_groups, update_text_role
from asg_core.planning.memory import StepMemory, generation_memory, understanding_memory
from asg_core.planning.shape import ModelShape
from asg_core.training.optimizer import RoleOptimizer
from scripted import Scripted

Kind = Literal["understanding", "generation"]
Reports = dict[Role, UpdateReport]
Watch = Callable[[str], AbstractContextManager[object]]
"""Given "sampling", "update proposer", "update solver" or "update generator"; entered around that part of a step."""

UPDATED: dict[Kind, tuple[Role, ...]] = {
    "understanding": (Role.PROPOSER, Role.SOLVER),
    "generation": (Role.GENERATOR,),
}
"""The roles that a step of each kind updates."""


@dataclass(frozen=True)
class Lengths:
    """A workload: new tokens of each kind of completion, all of which are always produced, and an image's side."""

    ask: int
    spec: int
    solve: int
    caption: int
    side: int


def step_config(model: Backbone, shape: ModelShape, kind: Kind, count: int, lengths: Lengths, room: float) -> RunConfig:
    """Settings of a step of ``count`` images: as many groups per backward pass as are planned to fit into ``room``
    bytes, or one."""
    base = {
        "ask": {"max_new_tokens": lengths.ask, "spec_max_new_tokens": lengths.spec},
        "solve": {"max_new_tokens": lengths.solve, "caption_max_new_tokens": lengths.caption},
        "generate": model.manifest.defaults.get("generate", {}),
        "images_per_step": count,
        "gradient_checkpointing": True,
    }
    for groups in (0, 12, 6, 3, 1):
        config = RunConfig.model_validate({**base, "optimizer": {"micro_batch": groups}})
        if planned(shape, config, kind, count, lengths.side).peak <= room:
            break
    return config


def planned(shape: ModelShape, config: RunConfig, kind: Kind, count: int, side: int) -> StepMemory:
    """Memory of such a step with the moments of the roles that it updates: those of others are never made."""
    still = {f"lr_{role.value}": 0.0 for role in Role if role not in UPDATED[kind]}
    alone = config.model_copy(update={"optimizer": config.optimizer.model_copy(update=still)})
    needs = understanding_memory if kind == "understanding" else generation_memory
    return needs(shape, alone, (side, side), count)


def scripted_step(
    model: Backbone,
    kind: Kind,
    pictures: Sequence[Image],
    config: RunConfig,
    optimizer: Callable[[Role], RoleOptimizer],
    *,
    floors: Mapping[Role, NoiseFloor] | None = None,
    watch: Watch = lambda part: nullcontext(),
    regroup: Callable[[list[Group]], list[Group]] = lambda groups: groups,
) -> Reports:
    """A step on ``pictures`` and its updates; what each role's update reports.

    Args:
        model: with endless texts.
        kind: of the step.
        pictures: the images.
        config: of the run.
        optimizer: of each role.
        floors: of rounding, as a run keeps them; a first update measures its own. None: nobody measures.
        watch: entered around each part.
        regroup: what a text role learns from, in other groups.
    """
    images = [PoolImage(Path(f"{i}.png"), picture) for i, picture in enumerate(pictures)]
    scripted = Scripted(model, [image.image for image in images], config.solve.framings)
    floors, ctx = floors or {}, StepContext(config, 1)

    def learn(role: Role, groups: list[Group]) -> UpdateReport:
        beta = AdaptiveKl(config.policy.beta_start, config.policy.kl_target)
        with watch(f"update {role.value}"):
            learner = Learner(role, optimizer(role), beta, floors.get(role, NoiseFloor(0.0)))
            return update_text_role(scripted, regroup(groups), learner, ctx)

    if kind == "understanding":
        with watch("sampling"):
            items = understanding_step(scripted, images, ctx, RollingPercentile(), EmaBaseline())
        return {
            Role.PROPOSER: learn(Role.PROPOSER, proposer_groups(items)),
            Role.SOLVER: learn(Role.SOLVER, solver_groups(items)),
        }
    with watch("sampling"):
        drawn = generation_step(scripted, images, ctx)
    with watch(f"update {Role.GENERATOR.value}"):
        learner = Learner(Role.GENERATOR, optimizer(Role.GENERATOR), floor=floors.get(Role.GENERATOR, NoiseFloor(0.0)))
        return {Role.GENERATOR: update_generator(scripted, drawn, learner, ctx)}


def require_updates(reports: Reports) -> None:
    """Raises RuntimeError if an update did not move its adapter, so that what it costs was not seen."""
    idle = [role.value for role, report in reports.items() if not report.step.applied]
    if idle:
        raise RuntimeError(f"the update of the {' and '.join(idle)} changed nothing: {reports}")
