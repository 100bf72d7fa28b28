"""Names of the released tensors and of the modules' parameters, and what is stored but has no use."""

from __future__ import annotations

import re
from collections.abc import Sequence

from asg_vargpt.config import Architecture

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
