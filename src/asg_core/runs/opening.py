"""Loading the base model, or the trained model of a run, from ``key=value`` words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from asg_core.errors import RunFolderError
from asg_core.runs.folder import run_config_file

if TYPE_CHECKING:
    from asg_core.backbones.interface import Backbone, Role
    from asg_core.config.schema import RunConfig


@dataclass(frozen=True)
class OpenedModel:
    """A loaded backbone and the settings it was loaded with; ``trained`` if role adapters of a run were loaded."""

    backbone: Backbone
    config: RunConfig
    trained: bool

    def role(self, role: Role) -> Role | None:
        """``role`` where the run's adapters are loaded, None (the base policy) where not."""
        return role if self.trained else None


def open_model(run: Path | None, overrides: Sequence[str]) -> OpenedModel:
    """Load the base model that ``key=value`` words describe, or with the folder of a ``run`` that run's model and its
    adapters; the words lie above its configuration.

    Raises:
        ConfigError, PluginError, WeightsError, RunFolderError.
    """
    from asg_core.runs.configuration import load_run_config

    config = load_run_config(run_config_file(run) if run else None, overrides)
    backbone = load_base(config)
    if run is not None:
        _load_adapters(backbone, run)
    return OpenedModel(backbone, config, run is not None)


def load_base(config: RunConfig, **instead: Any) -> Backbone:
    """The backbone of ``config`` with fresh adapters, without gradient checkpointing.

    ``instead`` are arguments of ``load_backbone`` that count more than the configuration. Raises what that raises.
    """
    from asg_core.backbones.loading import load_backbone

    own: dict[str, Any] = {
        "weights": config.weights,
        "device": config.device,
        "dtype": config.dtype,
        "options": config.backbone_options,
        "lora": config.lora,
        "seed": config.seed,
    }
    return load_backbone(config.backbone, **{**own, **instead})


def _load_adapters(backbone: Backbone, run: Path) -> None:
    from asg_core.backbones.interface import Role

    for role in Role:
        folder = run / "adapters" / role.value
        if not folder.is_dir():
            raise RunFolderError(
                f"--run {run} holds no adapter of the {role.value}",
                f"{folder} does not exist; adapters are written when a run ends",
                f"finish the run first: asg train resume={run}",
            )
        backbone.load_role(role, folder)
