"""Refuse what cannot work before anything is loaded or written."""

from __future__ import annotations

import shutil
from importlib.util import find_spec
from pathlib import Path

from asg_core.backbones.interface import Backbone, Role
from asg_core.backbones.loading import validate_options
from asg_core.backbones.manifest import BackboneManifest
from asg_core.config.schema import RunConfig
from asg_core.errors import ConfigError, RunFolderError
from asg_core.method.records import Kind
from asg_core.training.checkpoint import KEEP
from asg_core.training.distributed import launched_processes
from asg_core.training.schedule import kinds


def check_plan(config: RunConfig, manifest: BackboneManifest) -> set[Kind]:
    """Return the kinds of steps that the run will take.

    Raises:
        ConfigError: the backbone cannot take them, a tracker is not installed, there are no images, two settings
            do not go together, or several processes were launched and a setting is for one.
    """
    can = manifest.capabilities
    planned = kinds(config.steps, config.schedule)
    if "generation" in planned and (can.image_loss is None or not can.embed):
        missing = "generation_loss" if can.image_loss is None else "embed"
        raise ConfigError(
            f"backbone {config.backbone!r} cannot take generation steps",
            f"it has no {missing}",
            "use schedule.mode=understanding",
        )
    if config.generate.update == "policy_gradient" and can.image_loss == "flow":
        raise ConfigError(
            "generate.update=policy_gradient does not fit this backbone",
            f"{config.backbone!r} draws without token log-probs",
            "use generate.update=auto",
        )
    for tracker in config.trackers:
        if find_spec(tracker) is None:
            raise ConfigError(
                f"trackers={tracker} cannot log",
                "its package is not installed",
                f"pip install 'asg-core[{tracker}]'",
            )
    if config.optimizer.micro_batch == "auto" and launched_processes() > 1:
        raise ConfigError(
            f"optimizer.micro_batch=auto does not fit {launched_processes()} processes",
            "one that runs out of memory cannot take a step again while the others wait in the middle of it",
            "use a number, e.g. optimizer.micro_batch=1",
        )
    if config.profile and getattr(validate_options(manifest, config.backbone_options), "compile_decode", False):
        raise ConfigError(
            "profile=true does not go with backbone_options.compile_decode=true",
            "modules are counted when they are called, and a compiled pass calls none",
            "leave one of them out",
        )
    if config.images is None and manifest.images is None:
        raise ConfigError(
            "no images were given", f"backbone {config.backbone!r} brings none of its own", "add images=FOLDER"
        )
    return planned


def check_free_space(folder: Path, backbone: Backbone) -> None:
    """Refuse to start where the checkpoints of a run would not fit: adapters and two moments in float32, ``KEEP`` + 1
    times while one is being written, and the final adapters.

    Raises:
        RunFolderError: too little space where ``folder`` is, or will be.
    """
    adapters = 4 * sum(p.numel() for role in Role for p in backbone.trainable(role).values())
    needed = adapters * (3 * (KEEP + 1) + 1)
    place = next(path for path in [folder.absolute(), *folder.absolute().parents] if path.exists())
    free = shutil.disk_usage(place).free
    if free < needed:
        raise RunFolderError(
            f"the disk of {folder} is too full for a run",
            f"checkpoints need about {needed / 2**20:.0f} MiB, {free / 2**20:.0f} MiB are free",
            "free some space, or choose a folder on another disk with out=DIR",
        )
