"""What a run does on the device, in sections small enough to judge: parts of sampling and learning, and whole steps."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
from accelerate import Accelerator
from torch.optim.optimizer import register_optimizer_step_post_hook

from asg_core.backbones.interface import (
    ImageRequest,
    ImageSample,
    ImageSampling,
    Role,
    TextRequest,
    TextSample,
    TextSampling,
)
from asg_core.method.prompts import QUESTION_PROMPT
from asg_core.planning.duration import generation_phases, understanding_phases
from asg_core.training.optimizer import RoleOptimizer
from devkit.pretended_cuda.card import PretendedCuda
from devkit.pretended_cuda.counts import Counts
from gpu_bench import SHARE
from gpu_models import Built, Scale, build, pictures
from scripted import endless
from scripted_step import Kind, Lengths, require_updates, scripted_step, step_config

ROWS = 8
"""Samples that are decoded together."""
SHORT, LONG = 2, 6
"""New tokens of the two decodings whose difference is that of passes."""
PROMPT = "a red square above a blue circle"
PROMPT_TOKENS = {"bagel": 26, "blip3o": 107, "vargpt": 117}
"""Positions of it under each template, by the recorded tokenizers; plans assume another number."""
QUESTION_TOKENS = {
    "bagel": {"understanding": 22, "generation": 20},
    "blip3o": {"understanding": 28, "generation": 23},
    "vargpt": {"understanding": 26, "generation": 24},
}
"""Length of the scripted questions, and so the limit of a question: plans take it that each is as long as it may be."""


@dataclass
class Section:
    """A stretch of the program and what was seen in it.

    Attributes:
        name: e.g. "decode".
        counts: of all of it.
        per: what the section's loop repeats, "pass", "step" or "scale"; None: it has no loop.
        times: how often that is repeated; with several loops the fewest.
        looped: a source line that is seen so often is in that loop.
        updates: counts of each update, and its optimizer steps.
        planned_flops: by ``asg_core.planning``; None: it does not say.
        seconds: that it took here.
    """

    name: str
    counts: Counts = field(default_factory=Counts)
    per: str | None = None
    times: int = 0
    looped: int = 1
    updates: list[tuple[Counts, int]] = field(default_factory=list)
    planned_flops: float | None = None
    seconds: float = 0.0


class Workload:
    """One backbone on the device.

    Args:
        card: the device.
        name: of the backbone.
        scale: of :func:`gpu_models.build`.
    """

    def __init__(self, card: PretendedCuda, name: str, scale: Scale) -> None:
        self.card, self.name = card, name
        with patch(f"asg_{name}.plan.DRAWING_PROMPT", PROMPT_TOKENS[name]):
            self.built: Built = build(name, scale, "cuda", "bfloat16", checkpointing=True)
        self.backbone: Any = self.built.backbone
        endless(self.backbone)
        self.backbone.embed([PROMPT])  # what every embedding is compared with is worked out once
        self._samples: list[TextSample] = []
        self._drawn: list[ImageSample] = []

    def run(self, name: str) -> Section:
        """One section."""
        section, start = Section(name), time.monotonic()
        with self.card.count() as section.counts:
            _WORK[name](self, section)
        section.seconds = time.monotonic() - start
        return section

    # -- parts --------------------------------------------------------------------------------------------------------

    def prefill(self, section: Section) -> None:
        """An image never seen and a prompt, up to the first token."""
        shape, side = self.built.shape, self.built.side
        section.planned_flops = self.built.prefill_flops(QUESTION_PROMPT) + shape.trunk.head_flops(1)
        self.backbone.solve([TextRequest(QUESTION_PROMPT, pictures(1, side)[0], 0)], TextSampling(1))

    def decode(self, section: Section) -> None:
        """Passes over one token of each of some rows: a long decoding less a short one."""
        shape, side = self.built.shape, self.built.side
        picture = pictures(1, side)[0]
        requests = [TextRequest(QUESTION_PROMPT, picture, seed) for seed in range(ROWS)]
        self.backbone.solve(requests, TextSampling(1))  # the image is read once for all
        with self.card.count() as short:
            self.backbone.solve(requests, TextSampling(SHORT))
        with self.card.count() as section.counts:
            self._samples = self.backbone.solve(requests, TextSampling(LONG))
        section.counts.subtract(short)
        context = shape.see(side, side).tokens + shape.prompt_tokens(QUESTION_PROMPT) + (SHORT + LONG) / 2
        section.per, section.times = "pass", LONG - SHORT
        section.planned_flops = section.times * ROWS * (shape.trunk.flops(1, context) + shape.trunk.head_flops(1))

    def token_logits(self, section: Section) -> None:
        """Scores of samples under a role and the base, and the backward pass."""
        if not self._samples:
            self.decode(Section("decode"))
        scores = self.backbone.token_logits(self._samples, Role.SOLVER, base=True)
        self._backward(
            Role.SOLVER, torch.cat([one.logprobs for one in scores]).sum() + torch.cat([one.kl for one in scores]).sum()
        )

    def drawing(self, section: Section) -> None:
        """One image of the profile "quality", all stages of it."""
        drawing = self.built.drawings["quality"]
        section.per = "scale" if self.name == "vargpt" else "step"
        section.times = min(stage.calls for stage in drawing.stages if stage.calls > 1)
        section.looped = section.times - 1
        section.planned_flops = sum(stage.total_flops(1, 1) for stage in drawing.stages)
        self._drawn = self.backbone.generate([ImageRequest(PROMPT, 1)], ImageSampling("quality"))

    def generation_loss(self, section: Section) -> None:
        """The loss of that image, and the backward pass."""
        if not self._drawn:
            self.drawing(Section("drawing"))
        scored = self.backbone.generation_loss(self._drawn, [1])
        self._backward(Role.GENERATOR, scored.loss.sum() + scored.penalty.sum())

    def _backward(self, role: Role, loss: torch.Tensor) -> None:
        loss.backward()  # type: ignore[no-untyped-call]
        learned = [p.grad for p in self.backbone.trainable(role).values() if p.grad is not None]
        if not learned or any(grad.dtype != torch.float32 or grad.device.type != "cuda" for grad in learned):
            raise AssertionError(f"gradients of the {role.value} are not float32 on the device: {learned[:1]}")
        for parameter in self.backbone.trainable(role).values():
            parameter.grad = None

    # -- steps --------------------------------------------------------------------------------------------------------

    def step(self, section: Section, kind: Kind, count: int) -> None:
        """A whole step with its updates. RuntimeError if an update moved nothing."""
        side, shape = self.built.side, self.built.shape
        lengths = Lengths(QUESTION_TOKENS[self.name][kind], spec=6, solve=3, caption=4, side=side)
        config = step_config(self.backbone, shape, kind, count, lengths, SHARE * self.card.memory.total)
        phases = understanding_phases if kind == "understanding" else generation_phases
        section.planned_flops = sum(phase.flops for phase in phases(shape, config, (side, side), count))

        def watch(part: str) -> AbstractContextManager[None]:
            return nullcontext() if part == "sampling" else self._update(section)

        images = pictures(count, side)
        require_updates(scripted_step(self.backbone, kind, images, config, self._optimizer, watch=watch))

    @contextmanager
    def _update(self, section: Section) -> Iterator[None]:
        steps: list[object] = []
        counting = register_optimizer_step_post_hook(lambda optimizer, *_: steps.append(optimizer))
        try:
            with self.card.count() as counts:
                yield
        finally:
            counting.remove()
        section.updates.append((counts, len(steps)))

    def _optimizer(self, role: Role) -> RoleOptimizer:
        return RoleOptimizer(self.backbone.trainable(role), 1e-6, 0.0, 1.0, Accelerator())


_WORK: dict[str, Callable[[Workload, Section], None]] = {
    "prefill": Workload.prefill,
    "decode": Workload.decode,
    "token_logits": Workload.token_logits,
    "drawing": Workload.drawing,
    "generation_loss": Workload.generation_loss,
    "understanding step, 1 image": partial(Workload.step, kind="understanding", count=1),
    "generation step, 1 image": partial(Workload.step, kind="generation", count=1),
    "understanding step, 8 images": partial(Workload.step, kind="understanding", count=8),
    "generation step, 8 images": partial(Workload.step, kind="generation", count=8),
}
SECTIONS = tuple(_WORK)
