"""Bytes while text is sampled: keys and values of prompts and of samples, and what a pass makes beside them."""

from __future__ import annotations

from asg_core.models.limits import CACHE_GROWTH, slots_size
from asg_core.planning.shape import ModelShape
from asg_core.planning.workload import TextCall, logits_bytes


def decoding_bytes(shape: ModelShape, call: TextCall) -> int:
    """While samples are decoded eagerly, the kept image prefixes not among it.

    First the prompts are read: every prompt holds its image's prefix, copied if images have several prompts, and the
    prefix with the prompt appended. Then every sample holds a copy of that, which grows by whole reserves; those of the
    prompts go as these come.
    """
    trunk = shape.trunk
    samples = sample_cache_bytes(shape, call)
    longer_copy = samples if call.new > CACHE_GROWTH else prompt_cache_bytes(shape, call)
    in_a_layer = longer_copy // trunk.layers
    length = call.prefix + call.prompt + call.new
    passing = max(in_a_layer, logits_bytes(shape, call.rows), trunk.forward_bytes(call.rows, 1, length))
    return max(_reading_bytes(shape, call), samples + passing)


def compiled_decoding_bytes(shape: ModelShape, call: TextCall) -> int:
    """The same where samples are decoded in static slots, not counted here: prompts are let go as they are filled."""
    rows, length = _room(call)
    return max(
        _reading_bytes(shape, call), logits_bytes(shape, call.rows), shape.trunk.forward_bytes(rows, 1, length - 1)
    )


def slot_bytes(shape: ModelShape, call: TextCall) -> int:
    """Keys and values of the rows and positions that compiled passes of this call run over; they stay allocated."""
    rows, length = _room(call)
    return shape.trunk.kv_bytes * rows * length


def _room(call: TextCall) -> tuple[int, int]:
    return slots_size(call.rows, call.prefix + call.prompt + call.new)


def _reading_bytes(shape: ModelShape, call: TextCall) -> int:
    return prompt_cache_bytes(shape, call) + shape.trunk.forward_bytes(call.nodes, call.prompt, call.prefix)


def prompt_cache_bytes(shape: ModelShape, call: TextCall) -> int:
    """Keys and values of prompts that have been read."""
    copied = call.prefix if call.nodes > call.images else 0
    return shape.trunk.kv_bytes * call.nodes * (copied + call.prefix + call.prompt)


def sample_cache_bytes(shape: ModelShape, call: TextCall) -> int:
    """Keys and values of samples in their last eager pass."""
    reserved = CACHE_GROWTH * -(-max(call.new, 1) // CACHE_GROWTH)
    return shape.trunk.kv_bytes * call.rows * (call.prefix + call.prompt + reserved)
