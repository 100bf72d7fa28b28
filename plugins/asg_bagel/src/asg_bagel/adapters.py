"""Where the three role adapters sit: text roles on the understanding expert, the Generator on the generation expert.

The two sets of layers are disjoint, so the Generator's adapter leaves every text computation untouched, and the prefix
that it draws under is always the base model's.
"""

from __future__ import annotations

from asg_bagel.modeling_bagel import Bagel
from asg_core.backbones.interface import Role
from asg_core.backbones.manifest import LoraSettings
from asg_core.models.lora import RoleAdapters

MODULE = "language_model"

UNDERSTANDING = r"model\.layers\.\d+\.(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj)"
GENERATION = r"model\.layers\.\d+\.(self_attn\.[qkvo]_proj_moe_gen|mlp_moe_gen\.(gate|up|down)_proj)"
"""Whole layer names below ``language_model``. A suffix match would put text adapters on the generation expert's MLP and
no adapter at all on its attention."""


def inject(model: Bagel, settings: LoraSettings, seed: int) -> RoleAdapters:
    """Put fresh, zero-effect adapters on the model.

    Without the generation half the Generator's adapter is there too, on the host: it can be loaded and saved, not used.
    """
    targets = {
        Role.PROPOSER: {MODULE: UNDERSTANDING},
        Role.SOLVER: {MODULE: UNDERSTANDING},
        Role.GENERATOR: {MODULE: GENERATION},
    }
    return RoleAdapters({MODULE: model.language_model}, targets, settings, seed)
