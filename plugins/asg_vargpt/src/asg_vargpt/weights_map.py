"""Released files and the model: which tensor goes where, and what is stored but has no use."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from asg_core.models.weights.inventory import read_inventory, read_json, shapes
from asg_core.models.weights.loader import LoadReport, Slot, compare, fill, module_slots
from asg_vargpt.config import Architecture, infer
from asg_vargpt.modeling_vargpt import Vargpt

CONFIG = "config.json"
SOS = "sos_embedding.weight"
"""Stored as a table of which one row, that of the start token, is ever read; the model keeps only that row."""

SOS_PARAMETER = "sos_embedding"

_PREFIXES: tuple[tuple[str, str], ...] = (
    ("qwen.model.visual.", "visual."),
    ("qwen.model.language_model.", "model."),
    ("qwen.lm_head.", "lm_head."),
    ("decoder.", "vargpt_gen."),
    ("projector_in.", "image_gen_projector."),
    ("projector_out.", "image_gen_projector_out."),
    ("vae.", "vae_local."),
)


def unused_tensors(architecture: Architecture, hidden: int) -> dict[str, tuple[int, ...]]:
    """Name and shape of the stored tensors that no forward pass of the original reads.

    Args:
        architecture: sizes of the image modules.
        hidden: width of the language model.
    """
    shape = architecture.decoder
    width = shape.width
    pool = "vargpt_gen.text_proj_for_sos.ca"
    shapes: dict[str, tuple[int, ...]] = {
        f"{pool}.mat_q": (1, shape.pool_heads, width // shape.pool_heads),
        f"{pool}.zero_k_bias": (width,),
        "vae_local.quantizer.lfq.mask": (architecture.vae.bits,),
    }
    for layer in (0, 2):
        shapes[f"vargpt_gen.text_proj_for_ca.{layer}.weight"] = (width, width)
        shapes[f"vargpt_gen.text_proj_for_ca.{layer}.bias"] = (width,)
    for projector, size in (("image_gen_projector", width), ("image_gen_projector_out", hidden)):
        shapes[f"{projector}.ln_q.weight"] = shapes[f"{projector}.ln_q.bias"] = (size,)
    return shapes


def to_released(name: str, chunks: Sequence[int], vae_levels: int) -> str:
    """Released name of a parameter or buffer of :class:`asg_vargpt.modeling_vargpt.Vargpt`.

    Args:
        name: as in ``state_dict``.
        chunks: blocks per chunk of the image decoder.
        vae_levels: resolution levels of the VAE.

    Raises:
        ValueError: the model has no such part.
    """
    if name == SOS_PARAMETER:
        return SOS
    own, released = next((pair for pair in _PREFIXES if name.startswith(pair[0])), ("", ""))
    rest = name.removeprefix(own)
    match own:
        case "":
            raise ValueError(f"no released tensor corresponds to {name}")
        case "decoder.":
            rest = re.sub(r"^blocks\.(\d+)", lambda found: _chunk(int(found[1]), chunks), rest)
        case "vae.":
            rest = _vae(rest, vae_levels)
    return released + rest


def _chunk(block: int, chunks: Sequence[int]) -> str:
    for chunk, size in enumerate(chunks):
        if block < size:
            return f"block_chunks.{chunk}.module.{block}"
        block -= size
    raise ValueError("more blocks than chunks hold")


def _vae(name: str, levels: int) -> str:
    name = re.sub(r"down_blocks\.(\d+)\.resnets\.", r"down.\1.block.", name)
    name = re.sub(r"down_blocks\.(\d+)\.downsamplers\.0\.", r"down.\1.downsample.", name)
    name = re.sub(r"up_blocks\.(\d+)\.", lambda match: f"up.{levels - 1 - int(match[1])}.", name)
    name = name.replace(".resnets.", ".block.").replace(".upsamplers.0.", ".upsample.")
    name = re.sub(r"mid_block\.block\.(\d+)\.", lambda match: f"mid.block_{int(match[1]) + 1}.", name)
    name = name.replace("conv_shortcut.", "nin_shortcut.").replace("conv_norm_out.", "norm_out.")
    layer, _, leaf = name.rpartition(".")
    return f"{layer}.{'norm' if 'norm' in layer.rpartition('.')[2] else 'conv'}.{leaf}"


def empty_model(config: Mapping[str, Any], architecture: Architecture, *, generation: bool = True) -> Vargpt:
    """The model on the meta device: names and shapes, no memory."""
    with torch.device("meta"):
        return Vargpt(config, architecture, generation=generation).eval().requires_grad_(False)


def released_name(model: Vargpt, name: str) -> str:
    """Released name of a parameter or buffer of ``model``."""
    return to_released(name, model.architecture.decoder.chunks, len(model.architecture.vae.widths))


def slots(model: Vargpt) -> dict[str, Slot]:
    """The place of every released tensor that is loaded, by its released name. The VAE stays float32."""
    places = module_slots(model, lambda name: released_name(model, name))
    if SOS in places:
        start = model.architecture.tokens.start
        # reading the one row alone: the whole table is 0.6 GB at full size
        table = (start + 1, model.architecture.decoder.width)
        places[SOS] = replace(places[SOS], shape=table, rows=slice(start, start + 1))
    return {
        name: replace(slot, dtype=torch.float32) if name.startswith("vae_local.") else slot
        for name, slot in places.items()
    }


def compare_tensors(model: Vargpt, stored: Mapping[str, tuple[int, ...]]) -> LoadReport:
    """Hold the stored names and shapes against what a whole ``model`` expects, used or not."""
    return compare(slots(model), stored, unread=unused_tensors(model.architecture, model.hidden_size))


def load_model(
    directory: Path, *, device: str = "cpu", dtype: torch.dtype = torch.float32, generation: bool = True
) -> tuple[Vargpt, LoadReport]:
    """Build the model of a released directory, frozen, in eval mode, one tensor at a time.

    Args:
        directory: config.json and safetensors, sharded or single, any float dtype.
        device: torch device string.
        dtype: of everything but the VAE, which is float32.
        generation: False leaves out everything that is only needed to draw; the files must hold it all the same.

    Raises:
        WeightsError: a file is missing, damaged or truncated, or a tensor is missing, extra or misshapen.
    """
    config = read_json(directory / CONFIG)
    stored = read_inventory(directory)
    architecture = infer(config, shapes(stored))
    report = compare_tensors(empty_model(config, architecture), shapes(stored))
    report.require(directory)
    model = empty_model(config, architecture, generation=generation)
    wanted = slots(model)
    report = replace(
        report,
        matched=tuple(name for name in report.matched if name in wanted),
        skipped=(*report.skipped, *(name for name in report.matched if name not in wanted)),
    )
    fill(wanted, stored, device=device, dtype=dtype)
    model.rebuild_rotary_tables(torch.device(device))
    return model, report
