"""Seconds of a training step on a named device, from counted FLOPs, bytes and network calls.

A phase takes at least its FLOPs at the reachable rate, at least its bytes at the reachable bandwidth, and at least the
time to launch its kernels one by one. Python, preprocessing and stragglers are not counted. What devices can do is
their vendors' dense peak rates, and the share of them that large kernels reach.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from asg_core.config.schema import RunConfig
from asg_core.errors import ConfigError, did_you_mean
from asg_core.planning.shape import ModelShape, Trunk
from asg_core.planning.workload import SPEC_ANSWERS, TextCall, generation_calls, understanding_calls

COMPUTE_SHARE = 0.8
BANDWIDTH_SHARE = 0.9
"""Shares of the peak that large matrix products and long reads reach in practice; assumed, not measured."""

LAUNCH = 1.7e-3
"""Seconds to launch one transformer layer eagerly, adapters included: the median of twelve decode passes of 28 layers
on an H200's host, 36 to 77 ms (benchmarks/RESULTS.md). The host decides, so another one may take half or twice that."""

UPDATE_PASSES = 3
"""Forward under the role, forward under the base, backward (through frozen weights: as much as a forward)."""

HEAD_PASSES = 5
"""Of an update: the same three, and both forward passes once more on the way back, so that no logits are kept."""

ATTENTION_BACKWARD = 2.5
"""Backward of attention as a multiple of its forward: five matrix products, one of them the forward's again, for two
(Dao 2023, arXiv 2307.08691, section 4.1)."""


@dataclass(frozen=True)
class Accelerator:
    """One device model.

    Attributes:
        name: as written after ``--device-name``; part of the name that CUDA reports, but for capitals and blanks.
        flops: dense bfloat16 peak, FLOP/s.
        bandwidth: memory bandwidth, bytes/s.
        memory: bytes.
    """

    name: str
    flops: float
    bandwidth: float
    memory: int

    def is_called(self, reported: str) -> bool:
        """Whether ``reported`` is its name: our own, or what CUDA reports ("NVIDIA H100 80GB HBM3")."""
        return self.name in reported.lower().replace(" ", "")

    def roofline(self, flops: float, read: float) -> float:
        """Seconds that ``flops`` operations on ``read`` bytes take at least, at the reachable rates."""
        return max(flops / (COMPUTE_SHARE * self.flops), read / (BANDWIDTH_SHARE * self.bandwidth))


ACCELERATORS: tuple[Accelerator, ...] = (
    Accelerator("h200", 989e12, 4.8e12, 141 * 10**9),
    Accelerator("h100", 989e12, 3.35e12, 80 * 2**30),
    Accelerator("a100", 312e12, 2.039e12, 80 * 2**30),
    Accelerator("l40s", 362e12, 0.864e12, 48 * 10**9),
    Accelerator("rtx4090", 165e12, 1.008e12, 24 * 2**30),
)
"""SXM variants where there are several. Data sheets quote twice these FLOP/s for sparse matrices."""


def find_accelerator(name: str) -> Accelerator:
    """The device that is called ``name``, by us or by CUDA. Raises ConfigError if it is not in the table."""
    for device in ACCELERATORS:
        if device.is_called(name):
            return device
    names = [device.name for device in ACCELERATORS]
    fix = (
        f"{did_you_mean(name.lower(), names)} Give the nearest one with --device-name and its memory with --memory-gib."
    )
    raise ConfigError(f"device {name!r} is unknown", f"rates are known for {', '.join(names)}", fix)


@dataclass(frozen=True)
class Phase:
    """Some network calls in a row.

    Attributes:
        layers: transformer layers launched in all of them.
        flops: in all.
        read: bytes of weights and cache read in all.
    """

    name: str
    calls: int
    layers: int
    flops: float
    read: float

    def seconds(self, device: Accelerator, *, launches: bool = True) -> float:
        """At least this long; without ``launches`` as if they were free (captured)."""
        bound = device.roofline(self.flops, self.read)
        return max(bound, self.layers * LAUNCH) if launches else bound


def _see(shape: ModelShape, name: str, size: tuple[int, int], images: int) -> Phase:
    tower = next((part.bytes for part in shape.parts if part.name == "vision"), 0)
    seen = shape.see(*size)
    return Phase(name, 1, seen.layers, images * seen.flops, tower)


def _prefill(trunk: Trunk, name: str, rows: int, tokens: int, past: int) -> Phase:
    flops = rows * trunk.flops(tokens, past + tokens)
    read = trunk.weight_bytes + rows * past * trunk.kv_bytes
    return Phase(name, 1, trunk.layers, flops, read)


def _decode(trunk: Trunk, name: str, call: TextCall) -> Phase:
    rows, new, context = call.rows, call.new, call.prefix + call.prompt + call.new / 2
    flops = rows * (trunk.flops(new, context) + trunk.head_flops(new))
    read = new * (trunk.weight_bytes + rows * context * trunk.kv_bytes)
    return Phase(name, new, new * trunk.layers, flops, read)


def _update(trunk: Trunk, name: str, call: TextCall, rows: int, *, shared: bool, again: bool) -> Phase:
    """``shared``: all samples of an image have one prompt, which passes with gradients read with the image."""
    shown = UPDATE_PASSES - 1 + again  # passes with gradients; the base has read the images before
    images, prefix, prompt, new = call.images, call.prefix, call.prompt, call.new
    read, own = (prefix + prompt, new) if shared else (prefix, prompt + new)
    flops = shown * (images * trunk.flops(read, read) + rows * trunk.flops(own, read + own))
    attention = images * trunk.attention_flops(read, read) + rows * trunk.attention_flops(own, read + own)
    flops += (ATTENTION_BACKWARD - 1) * attention + rows * trunk.flops(prompt + new, prefix + prompt + new)
    flops += HEAD_PASSES * trunk.head_flops(rows * new)
    if not shared:  # of a prefix's last layer, nobody reads more than keys and values
        unread = trunk.parameters / trunk.layers - 2 * trunk.width * trunk.kv_heads * trunk.head_width
        unread_attention = ATTENTION_BACKWARD * trunk.attention_flops(read, read) / trunk.layers
        flops -= images * (2 * unread * read + unread_attention)
    passes = 2 * shown + 1
    return Phase(name, passes, passes * trunk.layers, flops, passes * trunk.weight_bytes)


def understanding_phases(shape: ModelShape, config: RunConfig, size: tuple[int, int], images: int) -> list[Phase]:
    """An understanding step of ``images`` images of ``size`` (width, height) pixels, in order."""
    ask, solve = understanding_calls(shape, config, size, images)
    trunk, again = shape.trunk, config.gradient_checkpointing
    learning = config.optimizer.lr_proposer > 0 or config.optimizer.lr_solver > 0
    phases = [
        _see(shape, "vision tower", size, images),
        _prefill(trunk, "image prefix, all policies", (2 + learning) * images, ask.prefix, 0),
        _prefill(trunk, "ask, prompt", ask.nodes, ask.prompt, ask.prefix),
        _decode(trunk, "ask, decode", ask),
        _prefill(trunk, "solve, prompts", solve.nodes, solve.prompt, solve.prefix),
        _decode(trunk, "solve, decode", solve),
    ]
    if config.optimizer.lr_proposer:
        shared = trunk.reads_once(config.ask.questions_per_image)
        phases.append(_update(trunk, "update Proposer", ask, ask.rows, shared=shared, again=again))
    if config.optimizer.lr_solver:
        phases.append(_update(trunk, "update Solver", solve, solve.nodes, shared=False, again=again))
    return phases


def generation_phases(shape: ModelShape, config: RunConfig, size: tuple[int, int], images: int) -> list[Phase]:
    """A generation step of ``images`` prompts, in order. Raises ValueError if the model cannot draw."""
    if shape.drawing is None:
        raise ValueError("this model cannot draw")
    drawing = shape.drawing
    spec, references, judge = generation_calls(shape, drawing, config, size, images)
    trunk, answer, caption = shape.trunk, config.solve.max_new_tokens, config.solve.caption_max_new_tokens
    drawn, both, longer = judge.images, min(answer, caption), SPEC_ANSWERS if answer > caption else 1
    batches = -(-drawn // drawing.batch)
    phases = [
        _see(shape, "vision tower", size, images),
        _prefill(trunk, "image prefix, both roles", 2 * images, spec.prefix, 0),
        _prefill(trunk, "spec, prompt", spec.nodes, spec.prompt, spec.prefix),
        _decode(trunk, "spec, decode", spec),
        _prefill(trunk, "references, prompts", references.nodes, references.prompt, references.prefix),
        _decode(trunk, "references, decode", references),
        *(
            Phase(
                f"draw, {stage.name}",
                batches * stage.calls,
                batches * stage.calls * stage.layers,
                stage.total_flops(drawn, images),
                float(batches) * stage.calls * stage.parameters * trunk.itemsize,
            )
            for stage in drawing.stages
        ),
        _see(shape, "vision tower, candidates", drawing.size, drawn),
        _prefill(trunk, "judge, image prefix", drawn, judge.prefix, 0),
        _prefill(trunk, "judge, prompts", judge.nodes, judge.prompt, judge.prefix),
        # answers and captions are one batch, which those with the lower limit leave first
        _decode(trunk, "judge, decode", replace(judge, new=both)),
        _decode(
            trunk,
            "judge, longer rows",
            replace(judge, rows=drawn * longer, prompt=judge.prompt + both, new=judge.new - both),
        ),
        _prefill(trunk, "embed", drawn, judge.prefix, 0),
    ]
    if config.optimizer.lr_generator:
        passes = UPDATE_PASSES + (config.gradient_checkpointing and drawing.loss_recomputed)
        of_one = passes * drawing.loss_flops + (ATTENTION_BACKWARD - 1) * drawing.loss_attention_flops
        flops = drawn * of_one + images * drawing.loss_prompt_flops
        read = passes * max(stage.parameters for stage in drawing.stages) * trunk.itemsize
        phases.append(Phase("update Generator", passes, passes * drawing.loss_layers, flops, read))
    return phases
