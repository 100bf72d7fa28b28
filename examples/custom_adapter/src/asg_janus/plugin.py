"""What the plugin announces to asg_core: data and lazy targets, no model code."""

from __future__ import annotations

from asg_core.backbones.hookspecs import hookimpl
from asg_core.backbones.manifest import BackboneManifest, Capabilities

MANIFEST = BackboneManifest(
    name="janus",
    summary="Janus and Janus-Pro: Llama with a SigLIP tower and autoregressive VQ images",
    licence="DeepSeek Model License",
    capabilities=Capabilities(text=True, image_loss="tokens", embed=True, gradient_checkpointing=True),
    factory="asg_janus.backbone:load",
    options="asg_janus.options:JanusOptions",
    export="asg_janus.export:export",
    defaults={"generate": {"update": "regression"}},
)
"""Regression by default: guided candidates are not samples of the policy that a probability ratio would be taken of."""


@hookimpl
def asg_backbones() -> list[BackboneManifest]:
    """The one backbone of this plugin."""
    return [MANIFEST]
