"""What the verbs share: options of verbs that load a model, and how a model is loaded from them."""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from asg_core.config import RunConfig
    from asg_core.roles import Backbone, Role


INTERRUPTED = 130
"""Exit code after Ctrl-C."""


@dataclass(frozen=True)
class OpenedModel:
    """A loaded backbone and the settings it was loaded with; ``evolved`` if role adapters of a run were loaded."""

    backbone: Backbone
    config: RunConfig
    evolved: bool

    def role(self, role: Role) -> Role | None:
        """``role`` where the run's adapters are loaded, None (the base policy) where not."""
        return role if self.evolved else None


def add_overrides(parser: argparse.ArgumentParser) -> None:
    """The trailing ``key=value`` words."""
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="settings, e.g. solve.temperature=0.7; asg config lists them"
    )


def add_json(parser: argparse.ArgumentParser) -> None:
    """The ``--json`` flag of verbs that scripts call."""
    parser.add_argument("--json", action="store_true", help="print JSON for scripts")


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Options that say which model to load."""
    group = parser.add_argument_group("model")
    group.add_argument(
        "--run", type=Path, metavar="DIR", help="a run folder: its backbone, weights and evolved adapters"
    )
    group.add_argument("--backbone", metavar="NAME", help="installed backbone (default: tiny); asg plugins lists them")
    group.add_argument("--weights", metavar="DIR", help="directory of the model's weights")
    group.add_argument("--device", help="auto, cpu, cuda, cuda:1, mps (default: auto)")
    group.add_argument("--seed", type=int, help="of everything random (default: 0, or the run's)")


def open_model(args: argparse.Namespace) -> OpenedModel:
    """Load what :func:`add_model_options` describes: the base model, or with ``--run`` also the run's adapters.

    Raises:
        ConfigError, PluginError, WeightsError, RunFolderError.
    """
    from asg_core.config_io import load_run_config
    from asg_core.plugins import load_backbone

    names = ("backbone", "weights", "device", "seed")
    # JSON text is YAML text, so a path is taken as it is, whatever it looks like
    given = [f"{n}={json.dumps(getattr(args, n), ensure_ascii=False)}" for n in names if getattr(args, n) is not None]
    config = load_run_config(run_config_file(args.run) if args.run else None, [*given, *args.overrides])
    backbone = load_backbone(
        config.backbone,
        weights=config.weights,
        device=config.device,
        dtype=config.dtype,
        options=config.backbone_options,
        lora=config.lora,
        seed=config.seed,
    )
    if args.run is not None:
        _load_adapters(backbone, args.run)
    return OpenedModel(backbone, config, args.run is not None)


def run_config_file(run: Path) -> Path:
    """The configuration stored in a run folder. Raises RunFolderError if there is none."""
    from asg_core.errors import RunFolderError

    config = run / "config.yaml"
    if not config.is_file():
        raise RunFolderError(f"{run} is not a run", "it holds no config.yaml", "give the folder that asg train wrote")
    return config


def _load_adapters(backbone: Backbone, run: Path) -> None:
    from asg_core.errors import RunFolderError
    from asg_core.roles import Role

    for role in Role:
        folder = run / "adapters" / role.value
        if not folder.is_dir():
            raise RunFolderError(
                f"--run {run} holds no adapter of the {role.value}",
                f"{folder} does not exist; adapters are written when a run ends",
                f"finish the run first: asg train resume={run}",
            )
        backbone.load_role(role, folder)


def at_least_one(text: str) -> int:
    """argparse type: a whole number >= 1."""
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not >= 1")
    return number


def print_json(value: Any) -> None:
    """Indented ASCII JSON on stdout; NaN is refused."""
    print(json.dumps(value, indent=2, allow_nan=False))
