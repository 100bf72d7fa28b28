"""asg_core: self-evolution of unified multimodal models from unlabeled images (Ask, Solve, Generate; arXiv 2606.27376).

Importing this package imports neither torch nor transformers; public names are resolved on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_LAZY = {
    "AsgError": "asg_core.errors",
    "Backbone": "asg_core.backbones.interface",
    "BackboneManifest": "asg_core.backbones.manifest",
    "Capabilities": "asg_core.backbones.manifest",
    "CausalBackbone": "asg_core.models.causal",
    "ImageRequest": "asg_core.backbones.interface",
    "ImageSampling": "asg_core.backbones.interface",
    "Role": "asg_core.backbones.interface",
    "RunConfig": "asg_core.config.schema",
    "TextRequest": "asg_core.backbones.interface",
    "TextSampling": "asg_core.backbones.interface",
    "Trainer": "asg_core.training.trainer",
    "hookimpl": "asg_core.backbones.hookspecs",
    "list_backbones": "asg_core.backbones.registry",
    "load_backbone": "asg_core.backbones.loading",
}
__all__ = [
    "AsgError",
    "Backbone",
    "BackboneManifest",
    "Capabilities",
    "CausalBackbone",
    "ImageRequest",
    "ImageSampling",
    "Role",
    "RunConfig",
    "TextRequest",
    "TextSampling",
    "Trainer",
    "hookimpl",
    "list_backbones",
    "load_backbone",
]

if TYPE_CHECKING:
    from asg_core.backbones.hookspecs import hookimpl
    from asg_core.backbones.interface import Backbone, ImageRequest, ImageSampling, Role, TextRequest, TextSampling
    from asg_core.backbones.loading import load_backbone
    from asg_core.backbones.manifest import BackboneManifest, Capabilities
    from asg_core.backbones.registry import list_backbones
    from asg_core.config.schema import RunConfig
    from asg_core.errors import AsgError
    from asg_core.models.causal import CausalBackbone
    from asg_core.training.trainer import Trainer


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
