"""Loading a backbone that a plugin provides: its options and weights checked, its code run at arm's length."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from asg_core.backbones.interface import Backbone
from asg_core.backbones.manifest import BackboneManifest, LoadRequest, LoraSettings
from asg_core.backbones.registry import find_manifest, plugin_errors, resolve
from asg_core.config.validation import validate
from asg_core.errors import CapabilityError, ConfigError, PluginError, WeightsError


def load_backbone(
    name: str,
    *,
    weights: str | Path | None = None,
    device: str = "cpu",
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto",
    options: Mapping[str, Any] | None = None,
    lora: LoraSettings | None = None,
    seed: int = 0,
    gradient_checkpointing: bool = False,
) -> Backbone:
    """Load an installed backbone with fresh (zero-effect) role adapters.

    Args:
        name: of the backbone; ``asg plugins`` lists them.
        weights: directory of its released weights; embedded backbones need none.
        device: torch device string, or "auto" (cuda, mps, cpu).
        dtype: of the frozen base, or "auto" (bfloat16 on cuda, float32 elsewhere).
        options: the backbone's own settings, validated against its options model.
        lora: shape of the role adapters.
        seed: of the adapters' initialisation.
        gradient_checkpointing: trade time for memory in updates.

    Raises:
        PluginError: no such backbone, or its code fails. ConfigError: bad options or device.
        WeightsError: weights missing. CapabilityError: checkpointing asked of a backbone without it.
    """
    from asg_core.backbones.devices import resolve_device, resolve_dtype  # torch, which takes seconds

    manifest = find_manifest(name)
    folder = check_weights(manifest, weights)
    if gradient_checkpointing and not manifest.capabilities.gradient_checkpointing:
        raise CapabilityError(
            f"backbone {name!r} has no gradient checkpointing",
            "its capabilities say so",
            "leave gradient_checkpointing=false",
        )
    resolved = resolve_device(device)
    request = LoadRequest(
        weights=folder,
        device=resolved,
        dtype=resolve_dtype(dtype, resolved),
        lora=lora or LoraSettings(),
        gradient_checkpointing=gradient_checkpointing,
        options=validate_options(manifest, options or {}),
        seed=seed,
    )
    with plugin_errors(f"backbone {name!r} could not be loaded"):
        backbone = resolve(manifest.factory)(request)
    if not isinstance(backbone, Backbone):
        raise PluginError(
            f"backbone {name!r} is not a Backbone",
            f"{manifest.factory} returned {type(backbone).__name__}",
            "report this to the plugin's author",
        )
    return backbone


def validate_options(manifest: BackboneManifest, options: Mapping[str, Any]) -> Any:
    """An instance of the manifest's options model, or None where the backbone has no options. Raises ConfigError
    for an unknown option (with the nearest name) or a value out of range."""
    if manifest.options is None:
        if options:
            raise ConfigError(
                f"backbone_options.{next(iter(options))} is unknown",
                f"backbone {manifest.name!r} has no options of its own",
                "leave backbone_options out",
            )
        return None
    return validate(resolve(manifest.options), options, prefix="backbone_options.")


def check_weights(manifest: BackboneManifest, weights: str | Path | None) -> Path | None:
    """The folder of a backbone's weights, None for embedded ones. Raises WeightsError if it is needed and not there."""
    if weights is None:
        if manifest.weights_embedded:
            return None
        raise WeightsError(
            f"backbone {manifest.name!r} needs weights",
            "it has none embedded",
            "give weights=DIR (--weights DIR) with its released files",
        )
    folder = Path(weights)
    if not folder.is_dir():
        raise WeightsError(
            f"weights={weights} cannot be used",
            "it is not a directory",
            "give the directory that holds the model's files",
        )
    return folder
