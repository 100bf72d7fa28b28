"""Which layers carry which role's adapter. One set of role names over all modules, so a switch switches all of them."""

from __future__ import annotations

from asg_blip3o.modeling_blip3o import Blip3oModel
from asg_core.backbones.interface import Role
from asg_core.backbones.manifest import LoraSettings
from asg_core.models.lora import RoleAdapters

LANGUAGE_MODULE, FLOW_MODULE = "language", "flow"

LANGUAGE_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""Of the language model alone: the vision tower, whose MLP layers bear the same names, is another module."""

FLOW_TARGETS = (
    "attn2.to_q",
    "attn2.to_k",
    "attn2.to_v",
    "attn2.to_out.0",
    "caption_projection.linear_1",
    "caption_projection.linear_2",
)
"""Cross-attention and caption projection of the flow network."""


def role_adapters(model: Blip3oModel, settings: LoraSettings, seed: int, *, generator_language: bool) -> RoleAdapters:
    """Inject the three adapters: text roles on the language model, the generator on the flow network.

    Args:
        model: loaded, without adapters.
        settings: rank and alpha of every adapter.
        seed: of the initialisation.
        generator_language: put the generator on the language model too.
    """
    language = {LANGUAGE_MODULE: LANGUAGE_TARGETS}
    flow = {FLOW_MODULE: FLOW_TARGETS}
    return RoleAdapters(
        {LANGUAGE_MODULE: model.vlm.model.language_model, FLOW_MODULE: model.flow},
        {
            Role.PROPOSER: language,
            Role.SOLVER: language,
            Role.GENERATOR: {**flow, **language} if generator_language else flow,
        },
        settings,
        seed,
    )
