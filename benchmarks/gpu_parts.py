"""Parts of a step: replayed log-probs, prefill, decoding (eager, captured, compiled) and drawing."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from asg_core.backbones.interface import ImageRequest, ImageSample, ImageSampling, Role, TextRequest, TextSampling
from asg_core.method.losses import k3
from asg_core.method.prompts import QUESTION_PROMPT
from asg_core.method.replay import NoiseFloor
from asg_core.models.decoding import CompiledDecode
from asg_core.models.decoding.compiled import Compiler, Pass, inductor
from captured import Captured
from gpu_bench import Bench
from gpu_models import pictures
from gpu_rows import Row, against, check, timed
from one_by_one import OneByOne

BATCHES = (1, 8, 32)
COMPILED_ROWS = (8,)
"""Rows of the compiled passes; each other number would be compiled, too."""

REPEAT_BELOW = 5.0
"""Seconds; what took less is measured again, warm."""

CLIP = 0.2
"""Half width of the trust region of a policy ratio (METHOD, Policy update)."""

BARS = {("bagel", "rollout"): 4.5}
"""Seconds of one image."""


def replay(bench: Bench, section: str = "replay", batch: int = 4) -> Iterator[Row]:
    """Scoring a stored sample again must give the log-probs that it was sampled with, alone as in a batch."""
    picture = pictures(1, bench.built.side)[0]
    requests = [TextRequest(QUESTION_PROMPT, picture, seed) for seed in range(batch)]
    samples = bench.backbone.solve(requests, TextSampling(bench.short.solve))
    with torch.no_grad():
        together = bench.backbone.token_logits(samples, Role.SOLVER)
        alone = OneByOne(bench.backbone).token_logits(samples, Role.SOLVER)
    scored, single = (torch.cat([score.logprobs for score in scores]) for scores in (together, alone))
    stored = scored.new_tensor([value for sample in samples for value in sample.logprobs])
    drift = (scored - stored).abs()
    apart = float(k3(scored, single).mean())
    limit, least = (floor.limit(bench.backbone.dtype, len(scored)) for floor in (NoiseFloor(apart), NoiseFloor()))
    entropy = statistics.fmean(value for sample in samples for value in sample.entropies)
    note = f"logits scaled to a largest one near 28, entropy {entropy:.2g} nats"
    yield check(
        section, "replayed log-probs against sampled, KL", float(k3(stored, scored).mean()), limit, "nats", note
    )
    yield Row(section, "mean log ratio", float(drift.mean()), "nats")
    yield Row(section, "95th percentile", float(drift.quantile(0.95)), "nats")
    yield Row(section, "tokens beyond the clip", float((drift > math.log1p(CLIP)).float().mean()), "share")
    yield check(section, "batch against singles, KL", apart, least, "nats")


def prefill(bench: Bench) -> Iterator[Row]:
    """An image never seen and a prompt, up to the first token."""
    shape, side = bench.built.shape, bench.built.side
    seen, prompt = shape.see(side, side), shape.prompt_tokens(QUESTION_PROMPT)
    tokens = seen.tokens + prompt
    flops = bench.built.prefill_flops(QUESTION_PROMPT)

    def once() -> float:
        request = TextRequest(QUESTION_PROMPT, pictures(1, side)[0], 0)
        return timed(bench.device, lambda: bench.backbone.solve([request], TextSampling(1)))

    once()
    value = statistics.median(once() for _ in range(3))
    note = f"{side}x{side} image, {tokens} tokens in all, vision tower included"
    yield Row(
        "prefill", "image and prompt", 1e3 * value, "ms", bound=bench.ms(flops, shape.trunk.weight_bytes), note=note
    )


def decode(bench: Bench, section: str = "decode", batches: Sequence[int] = BATCHES) -> Iterator[Row]:
    """The slope between a short and a long completion, the image prefix being there already."""
    shape, side = bench.built.shape, bench.built.side
    picture = pictures(1, side)[0]
    context = shape.see(side, side).tokens + shape.prompt_tokens(QUESTION_PROMPT)
    short, long = (2, 6) if bench.tiny else (2, 26)
    for batch in batches:
        requests = [TextRequest(QUESTION_PROMPT, picture, seed) for seed in range(batch)]

        def run(length: int, requests: Sequence[TextRequest] = requests) -> float:
            return timed(bench.device, lambda: bench.backbone.solve(requests, TextSampling(length)))

        first = sum(run(length) for length in (short, long))
        quickest = {length: min(run(length) for _ in range(2)) for length in (short, long)}
        slope = (quickest[long] - quickest[short]) / (long - short)
        flops = batch * (shape.trunk.flops(1, context) + shape.trunk.head_flops(1))
        read = shape.trunk.weight_bytes + batch * context * shape.trunk.kv_bytes
        bench.took[f"{section} pass"] = slope
        note = "eager" if section == "decode" else f"first calls {first:.0f} s"
        yield Row(section, f"one token, batch {batch}", 1e3 * slope, "ms", bound=bench.ms(flops, read), note=note)


@contextmanager
def fixed_shapes(bench: Bench, compiler: Compiler) -> Iterator[None]:
    """Inside, decode passes have fixed shapes and are run by what ``compiler`` makes of them."""
    bench.backbone.compiled = CompiledDecode(bench.backbone.text, compiler)
    try:
        yield
    finally:
        bench.backbone.compiled = None
        torch.compiler.reset()


def capturing(bench: Bench) -> Compiler:
    """CUDA graphs, one for each role; on a CPU the passes as they are."""
    return lambda run, device: Captured(run, device, lambda: bench.backbone.adapters.active)


def decode_captured(bench: Bench) -> Iterator[Row]:
    """Log-probs of captured passes against teacher forcing, then the times of :func:`decode`."""
    with fixed_shapes(bench, capturing(bench)):
        yield from replay(bench, "decode captured", 8)
        yield from decode(bench, "decode captured")


def decode_compiled(bench: Bench) -> Iterator[Row]:
    """The same with ``torch.compile``. The benchmark's own test needs no compiler: fixed shapes without one."""
    with fixed_shapes(bench, _as_it_is if bench.tiny else inductor):
        yield from replay(bench, "decode compiled", *COMPILED_ROWS)
        yield from decode(bench, "decode compiled", COMPILED_ROWS)


def _as_it_is(run: Pass, device: torch.device) -> Pass:
    return run


def images(bench: Bench) -> Iterator[Row]:
    """One image of each profile, the second of two if the first was quick."""
    itemsize = bench.built.shape.trunk.itemsize
    request = [ImageRequest("a red square above a blue circle", 1)]
    for profile, drawing in bench.built.drawings.items():
        sampling = ImageSampling("quality" if profile == "quality" else "rollout")
        drawn: list[ImageSample] = []

        def once(sampling: ImageSampling = sampling, drawn: list[ImageSample] = drawn) -> float:
            return timed(bench.device, lambda: drawn.extend(bench.backbone.generate(request, sampling)))

        value = once()
        value = once() if value < REPEAT_BELOW else value
        bench.took[f"{profile} image"] = value
        parts = [bench.ms(s.total_flops(1, 1), s.calls * s.parameters * itemsize) for s in drawing.stages]
        bound = sum(part for part in parts if part is not None) / 1e3 if bench.rates else None
        width, height = drawn[0].image.size
        row = Row("image", f"{width}x{height}, {profile}", value, "s", bound=bound)
        yield row if bench.tiny else against(row, BARS.get((bench.name, profile)))
