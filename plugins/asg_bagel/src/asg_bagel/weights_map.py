"""Released files and the model: which files there are, which tensor goes where, what may be left out.

``ema.safetensors`` wins over ``model.safetensors``: a fine-tune holds averaged weights next to raw ones. The
autoencoder has a file of its own, ``ae.safetensors``, or is among the main weights.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from asg_bagel.config import BagelConfig, build_config
from asg_bagel.modeling_bagel import Bagel
from asg_bagel.modeling_language import SUFFIX
from asg_core.errors import WeightsError
from asg_core.models.weights.inventory import Inventory, StoredTensor, read_inventory, read_json, shapes
from asg_core.models.weights.loader import LoadReport, Slot, compare, fill, module_slots

_GENERATION = ("encoder.", "decoder.", "time_embedder.", "vae2llm.", "llm2vae.", "latent_pos_embed.")
_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def released_vae_name(name: str, levels: int) -> str:
    """The released (latent-diffusion style) name of one of diffusers' autoencoder parameters.

    >>> released_vae_name("decoder.up_blocks.0.resnets.1.conv_shortcut.weight", 4)
    'decoder.up.3.block.1.nin_shortcut.weight'
    """
    name = re.sub(r"down_blocks\.(\d+)\.", r"down.\1.", name)
    name = re.sub(r"up_blocks\.(\d+)\.", lambda m: f"up.{levels - 1 - int(m[1])}.", name)
    name = re.sub(r"mid_block\.resnets\.(\d+)", lambda m: f"mid.block_{int(m[1]) + 1}", name)
    name = name.replace("mid_block.attentions.0", "mid.attn_1")
    if ".attn_1." in name:
        name = re.sub(r"group_norm|to_[qkv]|to_out\.0", lambda m: _ATTENTION[m[0]], name)
    name = re.sub(r"(down|up)samplers\.0", r"\1sample", name)
    return (
        name.replace("resnets", "block").replace("conv_shortcut", "nin_shortcut").replace("conv_norm_out", "norm_out")
    )


def read_weights(directory: Path) -> dict[str, StoredTensor]:
    """Every tensor of a checkpoint from headers: main weights (one file or shards), then the autoencoder.

    Raises:
        WeightsError: see :func:`asg_core.models.weights.inventory.read_inventory`.
    """
    return read_inventory(directory, ("ema", "model"), beside=("ae",))


def read_config(directory: Path, stored: Inventory | None = None) -> BagelConfig:
    """Sizes of a checkpoint from its JSON files and the shapes in its headers.

    Raises:
        WeightsError: a file or one of the three tensors that carry sizes is missing.
    """
    stored = read_weights(directory) if stored is None else stored
    config = directory / "config.json"
    return build_config(
        read_json(directory / "llm_config.json"),
        read_json(directory / "vit_config.json"),
        read_json(config).get("vae_config", {}) if config.is_file() else {},
        vision_rows=_shape(stored, "vit_pos_embed.pos_embed")[0],
        latent_rows=_shape(stored, "latent_pos_embed.pos_embed")[0],
        latent_width=_shape(stored, "vae2llm.weight")[1],
    )


def slots(model: Bagel) -> dict[str, Slot]:
    """The place of every released tensor in this model, by its released name."""
    levels = len(model.config.vae.ch_mult)

    def stored_name(name: str) -> str:
        return released_vae_name(name.removeprefix("vae."), levels) if name.startswith("vae.") else name

    # the autoencoder's attention is stored as 1 x 1 convolutions and computed as matrices
    return {
        name: replace(slot, shape=(*slot.shape, 1, 1)) if ".attn_1." in name and len(slot.shape) == 2 else slot
        for name, slot in module_slots(model, stored_name).items()
    }


def is_generation(name: str) -> bool:
    """Whether a released tensor belongs to the generation half."""
    return SUFFIX in name or name.startswith(_GENERATION)


def expected_tensors(config: BagelConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of all released tensors for these sizes; uses no memory."""
    with torch.device("meta"):
        model = Bagel(config)
    return {name: slot.shape for name, slot in slots(model).items()}


def load_model(
    directory: Path,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    generation: bool = True,
) -> tuple[Bagel, LoadReport]:
    """Build the model of a checkpoint and fill it, one tensor at a time; every parameter frozen, eval mode.

    Args:
        directory: the released layout.
        device: where the weights go.
        dtype: what they become.
        generation: False leaves the generation half out; layers of its expert hold placeholders.

    Raises:
        WeightsError: names the first tensors that are missing, unexpected or of another shape, or what is cut off.
    """
    stored = read_weights(directory)
    config = read_config(directory, stored)
    with torch.device("meta"):
        model = Bagel(config, generation=generation)
    places = slots(model)
    wanted = {name: slot for name, slot in places.items() if generation or not is_generation(name)}
    whole = expected_tensors(config).keys()
    report = compare(wanted, shapes(stored), skip=lambda name: not generation and name in whole)
    report.require(directory)
    fill(wanted, stored, device=device, dtype=dtype)
    for name in places.keys() - wanted.keys():
        _hold_place(places[name], dtype)
    model.language_model.model.reset_rope(device)
    return model.eval().requires_grad_(False), report


def _shape(stored: Inventory, name: str) -> tuple[int, ...]:
    if name not in stored or len(stored[name].shape) != 2:
        raise WeightsError(
            f"tensor {name} is missing or not a matrix",
            "the model's sizes are read from it",
            "use a complete BAGEL checkpoint",
        )
    return stored[name].shape


def _hold_place(slot: Slot, dtype: torch.dtype) -> None:
    """A parameter of the right shape that takes one number of host memory and is never computed with."""
    weight = torch.zeros((), dtype=dtype).expand(slot.tensor.shape)
    setattr(slot.module, slot.attribute, nn.Parameter(weight, requires_grad=False))
