"""What this package announces to asg-core: one backbone, as data."""

from __future__ import annotations

from asg_core.backbones.hookspecs import hookimpl
from asg_core.backbones.manifest import BackboneManifest, Capabilities

MANIFEST = BackboneManifest(
    name="blip3o",
    summary="BLIP3o 8B/4B: Qwen2.5-VL text, Next-DiT flow over EVA-CLIP features, SDXL-type decoder",
    licence="read the model cards: Qwen2.5-VL, EVA-CLIP, SDXL-type decoder and BLIP3o each have their own terms",
    capabilities=Capabilities(text=True, image_loss="flow", embed=True, gradient_checkpointing=True),
    factory="asg_blip3o.backbone:load",
    options="asg_blip3o.options:Blip3oOptions",
    parity="asg_blip3o.parity:replay",
    plan="asg_blip3o.plan:plan",
    export="asg_blip3o.export:export",
    defaults={"optimizer": {"lr_proposer": 1e-6, "lr_solver": 1e-6, "lr_generator": 5e-7}},
)


@hookimpl
def asg_backbones() -> list[BackboneManifest]:
    """The backbones of this package."""
    return [MANIFEST]
