"""Planned passes, FLOPs and seconds, by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from asg_core import RunConfig
from asg_core.errors import ConfigError
from asg_core.planning.duration import (
    ACCELERATORS,
    Accelerator,
    Phase,
    find_accelerator,
    generation_phases,
    understanding_phases,
)
from asg_core.planning.shape import ModelShape, Trunk
from asg_core.planning.workload import understanding_calls

from .conftest import SIZE, TRUNK

UNIT = Accelerator("unit", flops=1 / 0.8, bandwidth=1 / 0.9, memory=1000)
"""Reaches one FLOP and one byte a second."""


def test_a_qwen_sized_trunk_costs_what_is_known_of_it() -> None:
    """28 layers of 3584, 4 of 28 heads with keys: 56 KiB of cache and 13.05 GFLOP a token."""
    matrices = 28 * (2 * 3584 * 3584 + 2 * 3584 * 512 + 3 * 3584 * 18944)
    trunk = Trunk(28, 3584, 28, 4, 128, 18944, 152064, matrices, 2)
    assert trunk.kv_bytes == 56 * 1024
    assert trunk.flops(1, 0) == pytest.approx(13.05e9, rel=1e-3)
    assert trunk.head_flops(1) == pytest.approx(1.09e9, rel=1e-3)


def test_a_phase_is_bound_by_the_slowest_of_three() -> None:
    assert Phase("p", calls=1, layers=0, flops=3, read=2).seconds(UNIT) == pytest.approx(3)
    assert Phase("p", calls=1, layers=0, flops=2, read=3).seconds(UNIT) == pytest.approx(3)
    slow = Phase("p", calls=1, layers=4000, flops=2, read=3)
    assert slow.seconds(UNIT) == pytest.approx(6.8)
    assert slow.seconds(UNIT, launches=False) == pytest.approx(3)


def test_passes_of_an_understanding_step(shape: ModelShape, config: RunConfig) -> None:
    """Decoding takes as many passes as new tokens, however many images, questions and framings there are."""
    for images in (1, 8):
        phases = {p.name: p for p in understanding_phases(shape, config, SIZE, images)}
        assert phases["ask, decode"].calls == config.ask.max_new_tokens
        assert phases["solve, decode"].calls == config.solve.max_new_tokens
        assert phases["image prefix, all policies"].calls == 1


def test_ste_costs_rows_and_no_pass(shape: ModelShape, config: RunConfig) -> None:
    off = config.model_copy(update={"ste": config.ste.model_copy(update={"reduce": "off"})})
    with_it, without = ({p.name: p for p in understanding_phases(shape, c, SIZE, 1)} for c in (config, off))
    assert sum(p.calls for p in with_it.values()) == sum(p.calls for p in without.values())
    n = config.solve.framings
    assert with_it["solve, decode"].flops == pytest.approx((n + 1) / n * without["solve, decode"].flops)


def test_passes_of_a_generation_step(shape: ModelShape, config: RunConfig) -> None:
    """Candidates are questioned and captioned in as many passes as the longer of the two takes."""
    for answer, caption in ((4, 9), (9, 4), (5, 5)):
        solve = config.solve.model_copy(update={"max_new_tokens": answer, "caption_max_new_tokens": caption})
        phases = generation_phases(shape, config.model_copy(update={"solve": solve}), SIZE, 2)
        judged = [p for p in phases if p.name in ("judge, decode", "judge, longer rows")]
        assert sum(p.calls for p in judged) == max(answer, caption)


def test_flops_of_an_understanding_step_grow_with_its_images(shape: ModelShape, config: RunConfig) -> None:
    one, eight = (understanding_phases(shape, config, SIZE, n) for n in (1, 8))
    assert sum(p.flops for p in eight) == pytest.approx(8 * sum(p.flops for p in one))
    assert sum(p.read for p in eight) < 4 * sum(p.read for p in one)


def test_prompts_and_what_all_share_are_drawn_once(shape: ModelShape, config: RunConfig) -> None:
    assert shape.drawing is not None
    stage = replace(shape.drawing.stages[0], flops=1.0, prompt_flops=10.0, once_flops=1000.0)
    drawing = replace(
        shape.drawing,
        stages=(stage,),
        loss_flops=1.0,
        loss_attention_flops=0.5,
        loss_prompt_flops=10.0,
        loss_recomputed=False,
    )
    config = config.model_copy(update={"gradient_checkpointing": True})
    phases = {p.name: p.flops for p in generation_phases(replace(shape, drawing=drawing), config, SIZE, 2)}
    drawn = 2 * config.generate.candidates
    assert phases[f"draw, {stage.name}"] == drawn + 20 + 1000
    again = 1.5 * 0.5  # the gradient of attention costs 2.5 times its forward pass, that of a matrix product once
    assert phases["update Generator"] == (3 + again) * drawn + 20, "forward, base, backward; nothing is recomputed"


def test_candidates_are_drawn_in_batches(shape: ModelShape, config: RunConfig) -> None:
    assert shape.drawing is not None
    narrow = replace(shape, drawing=replace(shape.drawing, batch=4))
    drawn = 3 * config.generate.candidates
    for wanted, batches in ((shape, 1), (narrow, -(-drawn // 4))):
        draw = next(p for p in generation_phases(wanted, config, SIZE, 3) if p.name.startswith("draw"))
        assert draw.calls == batches * shape.drawing.stages[0].calls
        assert draw.flops == drawn * shape.drawing.stages[0].flops


def test_devices_are_found_by_our_name_and_by_that_of_cuda() -> None:
    assert find_accelerator("h200").memory == 141 * 10**9
    assert find_accelerator("NVIDIA H100 80GB HBM3").name == "h100"
    assert find_accelerator("NVIDIA A100-SXM4-80GB").name == "a100"
    assert len({device.name for device in ACCELERATORS}) == len(ACCELERATORS)
    with pytest.raises(ConfigError, match="'gaudi' is unknown"):
        find_accelerator("gaudi")


def test_reachable_rates_are_shares_of_the_peak() -> None:
    h200 = find_accelerator("h200")
    assert h200.roofline(791.2e12, 0) == pytest.approx(1.0)
    assert h200.roofline(0, 4.32e12) == pytest.approx(1.0)


def test_flops_of_an_update_by_hand(shape: ModelShape, config: RunConfig) -> None:
    """Three questions of one image. A causal image is one pass with the instruction; after another one, each question
    reads the instruction for itself, if they are few. With adapters there is a forward and a backward pass."""
    trunk, new = replace(TRUNK, vocabulary=0), config.ask.max_new_tokens
    asked, _ = understanding_calls(shape, config, SIZE, 1)
    image, prompt, k = asked.prefix, asked.prompt, 3
    matrices, cell = 2.0 * trunk.parameters, 4 * 3 * 8  # FLOPs of a position; and of a query and a key, in 3 layers

    def update(trunk: Trunk, questions: int = k) -> float:
        ask = config.ask.model_copy(update={"questions_per_image": questions})
        phases = understanding_phases(replace(shape, trunk=trunk), config.model_copy(update={"ask": ask}), SIZE, 1)
        return next(p.flops for p in phases if p.name == "update Proposer")

    def passes(read: int, own: int) -> float:
        attention = cell * (read**2 + k * own * (read + own))
        return 2 * matrices * (read + k * own) + (1 + 2.5) * attention

    base = k * (matrices + cell * (image + prompt + new)) * (prompt + new)
    assert update(trunk) == passes(image + prompt, new) + base
    apart = replace(trunk, causal_images=False)
    # in the last of 3 layers, of the image only keys and values (8 to 4 numbers each) have a gradient
    unread = 2 * image * (1000 / 3 - 2 * 8 * 4) + 2.5 * cell * image**2 / 3
    assert update(apart) == pytest.approx(passes(image, prompt + new) + base - unread)
    with_head = update(replace(trunk, vocabulary=100))
    assert with_head - update(trunk) == 5 * k * new * 2 * 8 * 100
    assert update(apart, questions=5) == update(trunk, questions=5)
