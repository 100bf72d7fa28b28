"""What a plugin says about a backbone before any of it is imported: plain data and lazy ``module:name`` targets."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from asg_core.config.schema import LoraSettings

__all__ = ["PLUGIN_API", "BackboneManifest", "Capabilities", "LoadRequest", "LoraSettings"]

PLUGIN_API = 1
"""Version of the plugin interface. A plugin whose manifest names another one is refused with both in the message."""

_TARGET = r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$"


class Capabilities(BaseModel):
    """What a backbone can do. False must raise CapabilityError when called, True must pass the conformance checks."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    text: bool = Field(True, description="ask, solve and token_logits work")
    image_loss: Literal["flow", "tokens"] | None = Field(
        None, description="kind of generation_loss: flow-matching error, token log-probs, or none (cannot draw)"
    )
    embed: bool = Field(True, description="embed works for images and texts in one space")
    gradient_checkpointing: bool = Field(
        False, description="token_logits (and generation_loss, if it can) trade time for memory on request"
    )


class BackboneManifest(BaseModel):
    """One backbone as its plugin announces it. Targets are resolved only when the backbone is asked for."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=r"^[a-z][a-z0-9_]*$", description="what users write after backbone=")
    summary: str = Field(description="one line")
    plugin_api: int = Field(PLUGIN_API, description="version of the plugin interface it was written for")
    licence: str = Field(description="licence of the weights")
    capabilities: Capabilities
    factory: str = Field(
        pattern=_TARGET,
        description="module:function(LoadRequest) -> Backbone",
    )
    options: str | None = Field(
        None, pattern=_TARGET, description="module:PydanticModel of the backbone's own settings (backbone_options=...)"
    )
    weights_embedded: bool = Field(False, description="true if it loads without weights=DIR")
    images: str | None = Field(
        None,
        pattern=_TARGET,
        description="module:function(directory, seed) that writes an unlabeled image folder, used without images=",
    )
    evaluation: str | None = Field(
        None, pattern=_TARGET, description="module:function(EvaluationRequest) -> list[EvalItem], a held-out evaluation"
    )
    truth: str | None = Field(
        None,
        pattern=_TARGET,
        description="module:class(seed) -> KnownWorld, what is true of the backbone's own images; studies only",
    )
    vocabulary: str | None = Field(
        None,
        pattern=_TARGET,
        description="module:function() -> frozenset of the lower-case words it can read and write; none: any text",
    )
    parity: str | None = Field(
        None,
        pattern=_TARGET,
        description="module:function(ParityRun) that replays recorded cases of the original implementation",
    )
    export: str | None = Field(
        None,
        pattern=_TARGET,
        description="module:function(backbone, weights, directory, roles, *, float32) -> ExportReport, merges adapters",
    )
    plan: str | None = Field(
        None,
        pattern=_TARGET,
        description="module:function(LoadRequest) -> ModelShape, what asg plan counts from; reads no tensor",
    )
    defaults: dict[str, Any] = Field(
        default_factory=dict, description="recommended RunConfig values for this backbone, below YAML and command line"
    )


class LoadRequest(BaseModel):
    """What a backbone factory receives.

    Attributes:
        weights: directory of released weights, or None for embedded ones.
        device: torch device string, e.g. "cpu", "cuda", "cuda:1".
        dtype: dtype of the frozen base; adapters are float32 regardless.
        lora: shape of the role adapters.
        options: validated instance of the manifest's options model, or None.
        seed: seeds the adapters' initialisation.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)

    weights: Path | None = None
    device: str = "cpu"
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    lora: LoraSettings = LoraSettings()
    gradient_checkpointing: bool = False
    options: Any = None
    seed: int = 0
