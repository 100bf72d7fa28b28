"""What the plugin announces to asg_core: data and lazy targets, no model code."""

from __future__ import annotations

from asg_core.backbones.hookspecs import hookimpl
from asg_core.backbones.manifest import BackboneManifest, Capabilities

MANIFEST = BackboneManifest(
    name="vargpt",
    summary="VARGPT-v1.1: Qwen2-VL-7B with next-scale bitwise image generation",
    licence="Apache-2.0",
    capabilities=Capabilities(text=True, image_loss="tokens", embed=True, gradient_checkpointing=True),
    factory="asg_vargpt.backbone:load",
    options="asg_vargpt.options:VargptOptions",
    parity="asg_vargpt.parity:replay",
    plan="asg_vargpt.plan:plan",
    export="asg_vargpt.export:export",
    defaults={"generate": {"update": "regression"}},
)
"""The Generator learns by reward-weighted bit cross-entropy unless told otherwise: guided, sharpened sampling is far
from the conditional policy that a ratio would be taken of."""


@hookimpl
def asg_backbones() -> list[BackboneManifest]:
    """The one backbone of this plugin."""
    return [MANIFEST]
