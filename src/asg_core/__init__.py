"""asg_core: self-evolution of unified multimodal models from unlabeled images (Ask, Solve, Generate; arXiv 2606.27376).

Importing this package imports neither torch nor transformers; public names are resolved on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_PUBLIC = {
    "backbones.hookspecs": ["hookimpl"],
    "backbones.interface": ["Backbone", "ImageRequest", "ImageSampling", "Role", "TextRequest", "TextSampling"],
    "backbones.loading": ["load_backbone"],
    "backbones.manifest": ["BackboneManifest", "Capabilities"],
    "backbones.registry": ["list_backbones"],
    "config.schema": ["RunConfig"],
    "errors": ["AsgError"],
    "models.causal": ["CausalBackbone"],
    "training.trainer": ["Trainer"],
}
_LAZY = {name: f"asg_core.{module}" for module, names in _PUBLIC.items() for name in names}
__all__ = list(_LAZY)

if TYPE_CHECKING:
    from asg_core.backbones.hookspecs import hookimpl as hookimpl
    from asg_core.backbones.interface import Backbone as Backbone
    from asg_core.backbones.interface import ImageRequest as ImageRequest
    from asg_core.backbones.interface import ImageSampling as ImageSampling
    from asg_core.backbones.interface import Role as Role
    from asg_core.backbones.interface import TextRequest as TextRequest
    from asg_core.backbones.interface import TextSampling as TextSampling
    from asg_core.backbones.loading import load_backbone as load_backbone
    from asg_core.backbones.manifest import BackboneManifest as BackboneManifest
    from asg_core.backbones.manifest import Capabilities as Capabilities
    from asg_core.backbones.registry import list_backbones as list_backbones
    from asg_core.config.schema import RunConfig as RunConfig
    from asg_core.errors import AsgError as AsgError
    from asg_core.models.causal import CausalBackbone as CausalBackbone
    from asg_core.training.trainer import Trainer as Trainer


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
