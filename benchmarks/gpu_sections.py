"""What ``gpu.py`` does with one model: correctness first, then prefill, decoding, images, and whole training steps."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from accelerate import Accelerator
from gpu_models import Built, pictures
from gpu_report import GIB, Row, Section, check, timed
from one_by_one import OneByOne, separate
from scripted import Scripted, endless

from asg_core.causal_backbone import CausalBackbone
from asg_core.config import RunConfig
from asg_core.decoding import CompiledDecode
from asg_core.decoding.compiled import Pass, inductor
from asg_core.entropy import RollingPercentile
from asg_core.images import PoolImage
from asg_core.optimiser import RoleOptimiser
from asg_core.planning import (
    Accelerator as Rates,
)
from asg_core.planning import (
    generation_memory,
    generation_phases,
    seconds,
    understanding_memory,
    understanding_phases,
)
from asg_core.policy import AdaptiveKl, EmaBaseline, k3
from asg_core.prompts import QUESTION_PROMPT
from asg_core.roles import (
    Backbone,
    ImageRequest,
    ImageSample,
    ImageSampling,
    Role,
    TextRequest,
    TextSample,
    TextSampling,
)
from asg_core.steps.generation import generation_step
from asg_core.steps.generator_update import update_generator
from asg_core.steps.replay import NoiseFloor
from asg_core.steps.understanding import understanding_step
from asg_core.steps.update import UpdateReport, proposer_groups, solver_groups, update_text_role

LENGTHS = {"ask": 32, "spec": 64, "solve": 16, "caption": 32}
TINY_LENGTHS = {"ask": 6, "spec": 6, "solve": 3, "caption": 4}
"""New tokens of a completion, all of which are always produced."""

REPEAT_BELOW = 5.0
"""Seconds; what took less is measured again, warm."""

COMPILED_ROWS = 8
"""Rows of the compiled passes; each other number would be compiled, too."""

COMPILING = 90.0
"""Seconds that it takes to compile and measure them, at the least. Estimated: never measured on a GPU."""

SHARE = 0.85
"""Of the device's memory that a step may plan with; what lies above is left to fragments and kernels' workspaces."""


@dataclass
class Bench:
    """One model under measurement; ``took`` remembers seconds of sections, to predict others."""

    name: str
    built: Built
    device: torch.device
    rates: Rates | None
    tiny: bool
    took: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.backbone: Backbone = self.built.backbone
        self.lengths = TINY_LENGTHS if self.tiny else LENGTHS
        self.many = 2 if self.tiny else 8
        endless(self.backbone)

    def sections(self) -> list[Section]:
        """All that needs the whole model, cheapest first."""
        return [
            Section("replay", self.replay),
            Section("prefill", self.prefill),
            Section("decode", lambda: self.decode("decode")),
            Section("image", self.images),
            Section("understanding step", lambda: self.step("understanding", 1)),
            Section("generation step", lambda: self.step("generation", 1), self._times(3, "rollout image")),
            Section(
                f"understanding step, {self.many} images",
                lambda: self.step("understanding", self.many),
                self._times(self.many, "understanding 1"),
            ),
            Section(
                "sequential understanding step",
                lambda: self.sequential("understanding"),
                self._times(8, "understanding 1"),
            ),
            Section(
                "sequential generation step",
                lambda: self.sequential("generation"),
                self._times(5, "generation 1"),
            ),
            Section(
                f"generation step, {self.many} images",
                lambda: self.step("generation", self.many),
                self._times(self.many, "generation 1"),
            ),
            # last, because compiling may take all the time that is left
            Section("decode, compiled", self.decode_compiled, lambda: 0.0 if self.tiny else COMPILING),
        ]

    def _times(self, factor: int, other: str) -> Callable[[], float]:
        """Seconds of a section that takes about ``factor`` times as long as ``other`` did."""
        return lambda: factor * self.took.get(other, 0.0)

    # -- correctness --------------------------------------------------------------------------------------------------

    def replay(self, section: str = "replay", batch: int = 4) -> list[Row]:
        """Scoring a stored sample again must give the log-probs that it was sampled with, alone as in a batch."""
        picture = pictures(1, self.built.side)[0]
        requests = [TextRequest(QUESTION_PROMPT, picture, seed) for seed in range(batch)]
        samples = self.backbone.solve(requests, TextSampling(self.lengths["solve"]))
        with torch.no_grad():
            together = self.backbone.token_logits(samples, Role.SOLVER)
            alone = OneByOne(self.backbone).token_logits(samples, Role.SOLVER)
        scored, single = (torch.cat([score.logprobs for score in scores]) for scores in (together, alone))
        stored = scored.new_tensor([value for sample in samples for value in sample.logprobs])
        drift, apart = float(k3(stored, scored).mean()), float(k3(scored, single).mean())
        limit = NoiseFloor().limit(self.backbone.dtype, len(scored))
        return [
            check(section, "replayed log-prob against sampled", drift, limit, "nats"),
            check(section, "batch against singles", apart, limit, "nats"),
        ]

    # -- parts --------------------------------------------------------------------------------------------------------

    def prefill(self) -> list[Row]:
        """An image never seen and a prompt, up to the first token."""
        shape, side = self.built.shape, self.built.side
        seen, prompt = shape.see(side, side), shape.prompt_tokens(QUESTION_PROMPT)
        tokens = seen.tokens + prompt
        flops = seen.flops + shape.trunk.flops(tokens, tokens / 2)

        def once() -> float:
            request = TextRequest(QUESTION_PROMPT, pictures(1, side)[0], 0)
            return timed(self.device, lambda: self.backbone.solve([request], TextSampling(1)))

        once()
        value = statistics.median(once() for _ in range(3))
        note = f"{side}x{side} image, {tokens} tokens in all, vision tower included"
        bound = self._ms(flops, shape.trunk.weight_bytes)
        return [Row("prefill", "image and prompt", 1e3 * value, "ms", bound=bound, note=note)]

    def decode_compiled(self) -> list[Row]:
        """Log-probs captured by compiled passes against teacher forcing, then the times of :meth:`decode`."""
        backbone = self.backbone
        if not isinstance(backbone, CausalBackbone):
            raise TypeError(f"{type(backbone).__name__} is no CausalBackbone")
        # the benchmark's own test needs no compiler: fixed shapes without one
        backbone.compiled = CompiledDecode(backbone.text, _as_it_is if self.tiny else inductor)
        try:
            return self.replay("decode, compiled", COMPILED_ROWS) + self.decode("decode, compiled", (COMPILED_ROWS,))
        finally:
            backbone.compiled = None
            torch.compiler.reset()

    def decode(self, section: str, batches: Sequence[int] = (1, 8, 32)) -> list[Row]:
        """The slope between a short and a long completion, the image prefix being there already."""
        shape, side = self.built.shape, self.built.side
        picture = pictures(1, side)[0]
        context = shape.see(side, side).tokens + shape.prompt_tokens(QUESTION_PROMPT)
        short, long = (2, 6) if self.tiny else (4, 36)
        rows = []
        for batch in batches:
            requests = [TextRequest(QUESTION_PROMPT, picture, seed) for seed in range(batch)]

            def run(length: int, requests: Sequence[TextRequest] = requests) -> float:
                return timed(self.device, lambda: self.backbone.solve(requests, TextSampling(length)))

            warming = sum(run(length) for length in (short, long))
            quickest = {length: min(run(length) for _ in range(3)) for length in (short, long)}
            slope = (quickest[long] - quickest[short]) / (long - short)
            flops = batch * (shape.trunk.flops(1, context) + shape.trunk.head_flops(1))
            read = shape.trunk.weight_bytes + batch * context * shape.trunk.kv_bytes
            note = "eager" if section == "decode" else f"first calls {warming:.0f} s"
            bound = self._ms(flops, read)
            rows.append(Row(section, f"one token, batch {batch}", 1e3 * slope, "ms", bound=bound, note=note))
        return rows

    def images(self) -> list[Row]:
        """One image of each profile, the second of two if the first was quick."""
        rows = []
        itemsize = self.built.shape.trunk.itemsize
        request = [ImageRequest("a red square above a blue circle", 1)]
        for profile, drawing in self.built.drawings.items():
            sampling = ImageSampling("quality" if profile == "quality" else "rollout")
            drawn: list[ImageSample] = []

            def once(sampling: ImageSampling = sampling, drawn: list[ImageSample] = drawn) -> float:
                return timed(self.device, lambda: drawn.extend(self.backbone.generate(request, sampling)))

            value = once()
            value = once() if value < REPEAT_BELOW else value
            self.took[f"{profile} image"] = value
            bound = self._sum([(s.flops, s.calls * s.parameters * itemsize) for s in drawing.stages])
            width, height = drawn[0].image.size
            rows.append(Row("image", f"{width}x{height}, {profile}", value, "s", bound=bound))
        return rows

    # -- steps --------------------------------------------------------------------------------------------------------

    def step(self, kind: str, count: int) -> list[Row]:
        """A whole step with its updates, ``count`` images, the second of two if the first was quick."""
        config = self._config(kind, count)
        section = f"{kind} step" if count == 1 else f"{kind} step, {count} images"
        memory, planned = _memory(self.device), self._planned(kind, count, config)
        if memory is not None and planned > memory:
            why = f"does not fit: planned {planned / GIB:.0f} GiB, the device has {memory / GIB:.0f}"
            return [Row(section, status="not run", note=why)]
        value = timed(self.device, lambda: self._take(kind, count, config, self.backbone, sequential=False))
        if value < REPEAT_BELOW:
            value = timed(self.device, lambda: self._take(kind, count, config, self.backbone, sequential=False))
        self.took[f"{kind} {count}"] = value
        shape, size = self.built.shape, (self.built.side, self.built.side)
        phases = (understanding_phases if kind == "understanding" else generation_phases)(shape, config, size, count)
        bound = seconds(phases, self.rates, launches=False) if self.rates else None
        micro = config.optimiser.micro_batch or "all"
        note = f"scripted texts, gradient checkpointing, {micro} groups per backward pass"
        rows = [Row(section, f"{count} images", value, "s", bound=bound, note=note)]
        if count > 1:
            rows.append(Row(section, "per image", value / count, "s"))
        if count > 1 and f"sequential {kind}" in self.took:
            ratio = count * self.took[f"sequential {kind}"] / value
            rows.append(Row(section, "sequential / this", ratio, "x", note=f"sequential: {count} times one image"))
        return rows

    def sequential(self, kind: str) -> list[Row]:
        """The same step at one image, call by call."""
        config = self._config(kind, 1)
        config = config.model_copy(update={"optimiser": config.optimiser.model_copy(update={"micro_batch": 1})})
        value = timed(self.device, lambda: self._take(kind, 1, config, OneByOne(self.backbone), sequential=True))
        self.took[f"sequential {kind}"] = value
        section = f"sequential {kind} step"
        rows = [Row(section, "1 images", value, "s", note="one request a call, nothing kept, one backward a sample")]
        for count in (1, self.many):
            if f"{kind} {count}" in self.took:
                ratio = count * value / self.took[f"{kind} {count}"]
                rows.append(Row(section, f"sequential / batched, {count} images", ratio, "x"))
        return rows

    def _take(self, kind: str, count: int, config: RunConfig, model: Backbone, *, sequential: bool) -> None:
        """One step and its updates. RuntimeError if an update did not move its adapter: then it was not measured."""
        images = [PoolImage(Path(f"{i}.png"), picture) for i, picture in enumerate(pictures(count, self.built.side))]
        scripted = Scripted(model, [image.image for image in images], config.solve.framings)
        accelerator = Accelerator(cpu=self.device.type == "cpu")
        settings = config.optimiser

        def optimiser(role: Role) -> RoleOptimiser:
            return RoleOptimiser(
                model.trainable(role), 1e-6, settings.weight_decay, settings.max_grad_norm, accelerator
            )

        def learn(role: Role, groups: list[list[tuple[TextSample, float]]]) -> UpdateReport:
            groups = separate(groups) if sequential else groups
            beta = AdaptiveKl(config.policy.beta_start, config.policy.kl_target)
            return update_text_role(scripted, role, groups, optimiser(role), beta, config)

        if kind == "understanding":
            items = understanding_step(scripted, images, config, 1, RollingPercentile(), EmaBaseline())
            reports = {
                Role.PROPOSER: learn(Role.PROPOSER, proposer_groups(items)),
                Role.SOLVER: learn(Role.SOLVER, solver_groups(items)),
            }
        else:
            drawn = generation_step(scripted, images, config, 1)
            reports = {Role.GENERATOR: update_generator(scripted, drawn, optimiser(Role.GENERATOR), config, 1)}
        idle = [role.value for role, report in reports.items() if not report.step.applied]
        if idle:
            raise RuntimeError(f"the update of the {' and '.join(idle)} changed nothing: {reports}")

    def _config(self, kind: str, count: int) -> RunConfig:
        """Step settings; as many groups per backward pass as the plan says fit."""
        base = {
            "ask": {"max_new_tokens": self.lengths["ask"], "spec_max_new_tokens": self.lengths["spec"]},
            "solve": {"max_new_tokens": self.lengths["solve"], "caption_max_new_tokens": self.lengths["caption"]},
            "generate": self.backbone.manifest.defaults.get("generate", {}),
            "images_per_step": count,
            "gradient_checkpointing": True,
        }
        for micro in (0, 12, 6, 3, 1):
            config = RunConfig.model_validate({**base, "optimiser": {"micro_batch": micro}})
            memory = _memory(self.device)
            if memory is None or self._planned(kind, count, config) <= SHARE * memory:
                break
        return config

    def _planned(self, kind: str, count: int, config: RunConfig) -> int:
        """Bytes at the largest moment, as counted."""
        needs = understanding_memory if kind == "understanding" else generation_memory
        return needs(self.built.shape, config, (self.built.side, self.built.side), count).peak

    def _ms(self, flops: float, read: float) -> float | None:
        return 1e3 * self.rates.roofline(flops, read) if self.rates else None

    def _sum(self, parts: list[tuple[float, float]]) -> float | None:
        return sum(self.rates.roofline(*part) for part in parts) if self.rates else None


def _memory(device: torch.device) -> int | None:
    return torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else None


def _as_it_is(run: Pass, device: torch.device) -> Pass:
    return run
