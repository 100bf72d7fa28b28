"""Announces the embedded backbone through the same hook as any plugin. Imports nothing heavy."""

from __future__ import annotations

from typing import Any

from asg_core.backbones.hookspecs import hookimpl
from asg_core.backbones.manifest import BackboneManifest, Capabilities

_DEFAULTS: dict[str, Any] = {
    "steps": 125,
    "images_per_step": 16,
    "ask": {"max_new_tokens": 16, "spec_max_new_tokens": 64},
    "solve": {"max_new_tokens": 4, "caption_max_new_tokens": 20},
    "generate": {"prompts_per_step": 12, "candidates": 6, "fidelity": "probability"},
    "policy": {"kl_target": 0.1},
    "optimizer": {"lr_proposer": 2e-5, "lr_solver": 1e-4, "lr_generator": 5e-4},
}
_COMMON: dict[str, Any] = {
    "licence": "Apache-2.0",
    "weights_embedded": True,
    "images": "asg_core.tiny.images:write_images",
    "evaluation": "asg_core.tiny.evaluation:evaluate",
    "truth": "asg_core.tiny.truth:TinyTruth",
    "vocabulary": "asg_core.tiny.vocabulary:known_words",
}

MANIFEST = BackboneManifest(
    name="tiny",
    summary="embedded model of a world of coloured shapes; draws as image tokens; trains in minutes on one CPU thread",
    capabilities=Capabilities(text=True, image_loss="tokens", embed=True, gradient_checkpointing=False),
    factory="asg_core.tiny.backbone:load",
    options="asg_core.backbones.options:BackboneOptions",
    plan="asg_core.tiny.plan:plan",
    defaults=_DEFAULTS,
    **_COMMON,
)

FLOW_MANIFEST = BackboneManifest(
    name="tiny_flow",
    summary="the same embedded model, drawing by rectified flow instead of image tokens",
    capabilities=Capabilities(text=True, image_loss="flow", embed=True, gradient_checkpointing=False),
    factory="asg_core.tiny.backbone:load_flow",
    plan="asg_core.tiny.plan:plan_flow",
    options="asg_core.tiny.backbone:FlowOptions",
    defaults=_DEFAULTS,
    **_COMMON,
)


@hookimpl
def asg_backbones() -> list[BackboneManifest]:
    """See ``asg_core.backbones.hookspecs``."""
    return [MANIFEST, FLOW_MANIFEST]
