"""What a plugin says about a backbone before any of it is imported: plain data and lazy ``module:name`` targets."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from asg_core.config.schema import LoraSettings as LoraSettings
from asg_core.errors import CapabilityError

PLUGIN_API = 1
"""Version of the plugin interface. A plugin whose manifest names another one is refused with both in the message."""

Target = Annotated[str, Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")]
"""``module:name``, imported only when it is needed."""


class Capabilities(BaseModel, frozen=True, extra="forbid"):
    """What a backbone can do. False must raise CapabilityError when called, True must pass the conformance checks."""

    text: bool = Field(True, description="ask, solve and token_logits work")
    image_loss: Literal["flow", "tokens"] | None = Field(
        None, description="kind of generation_loss: flow-matching error, token log-probs, or none (cannot draw)"
    )
    embed: bool = Field(True, description="embed works for images and texts in one space")
    gradient_checkpointing: bool = Field(
        False, description="token_logits (and generation_loss, if it can) trade time for memory on request"
    )


class BackboneManifest(BaseModel, frozen=True, extra="forbid"):
    """One backbone as its plugin announces it. Targets are resolved only when the backbone is asked for."""

    name: str = Field(pattern=r"^[a-z][a-z0-9_]*$", description="what users write after backbone=")
    summary: str = Field(description="one line")
    plugin_api: int = Field(PLUGIN_API, description="version of the plugin interface it was written for")
    licence: str = Field(description="licence of the weights")
    capabilities: Capabilities
    factory: Target = Field(description="module:function(LoadRequest) -> Backbone")
    options: Target | None = Field(
        None, description="module:PydanticModel of the backbone's own settings (backbone_options=...)"
    )
    weights_embedded: bool = Field(False, description="true if it loads without weights=DIR")
    images: Target | None = Field(
        None, description="module:function(directory, seed) that writes an unlabeled image folder, used without images="
    )
    evaluation: Target | None = Field(
        None, description="module:function(EvaluationRequest) -> list[EvalItem], a held-out evaluation"
    )
    truth: Target | None = Field(
        None, description="module:class(seed) -> KnownWorld, what is true of the backbone's own images; studies only"
    )
    vocabulary: Target | None = Field(
        None, description="module:function() -> frozenset of the lower-case words it can read and write; none: any text"
    )
    parity: Target | None = Field(
        None, description="module:function(ParityRun) that replays recorded cases of the original implementation"
    )
    export: Target | None = Field(
        None,
        description="module:function(backbone, weights, directory, roles, *, float32) -> ExportReport, merges adapters",
    )
    plan: Target | None = Field(
        None, description="module:function(LoadRequest) -> ModelShape, what asg plan counts from; reads no tensor"
    )
    defaults: dict[str, Any] = Field(
        default_factory=dict, description="recommended RunConfig values for this backbone, below YAML and command line"
    )

    def target(self, kind: Literal["evaluation", "export", "parity", "plan"], instead: str) -> str:
        """What is announced for ``kind``. Raises CapabilityError, whose remedy is ``instead``, if nothing is."""
        found: str | None = getattr(self, kind)
        if found is None:
            raise CapabilityError(f"backbone {self.name!r} has no {kind}", "its plugin announces none", instead)
        return found


class LoadRequest(BaseModel, frozen=True, extra="forbid"):
    """What a backbone factory receives: the directory of released weights (None for embedded ones), a torch device, the
    dtype of the frozen base (adapters are float32 regardless), a validated instance of the manifest's options model or
    None, and the seed of the adapters' initialisation."""

    weights: Path | None = None
    device: str = "cpu"
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    lora: LoraSettings = LoraSettings()
    gradient_checkpointing: bool = False
    options: Any = None
    seed: int = 0
