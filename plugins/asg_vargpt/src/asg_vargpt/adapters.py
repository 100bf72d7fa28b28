"""Where the role adapters sit: all on the language model; the Generator's, as an option, on the decoder as well."""

from __future__ import annotations

from torch import nn

from asg_core.backbones.interface import Role
from asg_core.backbones.manifest import LoraSettings
from asg_core.models.lora import RoleAdapters, Targets
from asg_vargpt.modeling_vargpt import Vargpt

LANGUAGE_MODEL = r"layers\.\d+\.(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj)"
DECODER = r"blocks\.\d+\.(sa\.(mat_qkv|proj)|ca\.(mat_q|mat_kv|proj)|ffn\.fc[12])"


def inject(model: Vargpt, settings: LoraSettings, seed: int, *, on_decoder: bool) -> RoleAdapters:
    """Put fresh, zero-effect adapters on the model; ``on_decoder`` adds the decoder to the Generator's.

    A model without its generation half has no Generator.
    """
    modules: dict[str, nn.Module] = {"language_model": model.language_model}
    roles = [role for role in Role if model.generation or role is not Role.GENERATOR]
    targets: dict[Role, dict[str, Targets]] = {role: {"language_model": LANGUAGE_MODEL} for role in roles}
    if on_decoder and model.generation:
        modules["decoder"] = model.decoder
        targets[Role.GENERATOR]["decoder"] = DECODER
    return RoleAdapters(modules, targets, settings, seed)
