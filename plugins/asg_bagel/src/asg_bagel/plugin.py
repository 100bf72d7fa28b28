"""What the plugin announces to asg_core: data and lazy targets, no model code."""

from __future__ import annotations

from asg_core.backbones.hookspecs import hookimpl
from asg_core.backbones.manifest import BackboneManifest, Capabilities

MANIFEST = BackboneManifest(
    name="bagel",
    summary="BAGEL-7B-MoT (ByteDance Seed): mixture of transformers, rectified-flow images",
    licence="Apache-2.0",
    capabilities=Capabilities(text=True, image_loss="flow", embed=True, gradient_checkpointing=True),
    factory="asg_bagel.backbone:load",
    options="asg_bagel.options:BagelOptions",
    parity="asg_bagel.parity:replay",
    plan="asg_bagel.plan:plan",
    export="asg_bagel.export:export",
)


@hookimpl
def asg_backbones() -> list[BackboneManifest]:
    """The one backbone of this plugin."""
    return [MANIFEST]
