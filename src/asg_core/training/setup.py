"""From a configuration to everything a run works with. Nothing is written before all of it is found good."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path

from accelerate import Accelerator

from asg_core.backbones.devices import resolve_device, resolve_dtype
from asg_core.backbones.interface import Backbone, Role
from asg_core.backbones.loading import validate_options
from asg_core.backbones.manifest import BackboneManifest
from asg_core.backbones.registry import find_manifest, resolve
from asg_core.config.schema import RunConfig
from asg_core.data.image_pool import ImagePool
from asg_core.errors import ConfigError, RunFolderError
from asg_core.method.records import Kind
from asg_core.runs.configuration import write_run_config
from asg_core.runs.console import TrainingDisplay
from asg_core.runs.folder import RunFolder, fill_directory, read_json_lines
from asg_core.runs.opening import load_base
from asg_core.training.checkpoint import KEEP
from asg_core.training.distributed import Processes, launched_processes, start_accelerator
from asg_core.training.fsdp import shard_base
from asg_core.training.schedule import kinds


@dataclass(frozen=True)
class RunSetup:
    """What a run works with: the backbone is loaded, and its base sharded where the launcher asks for it; the first
    process holds the write lock of the folder."""

    config: RunConfig
    manifest: BackboneManifest
    backbone: Backbone
    accelerator: Accelerator
    processes: Processes
    folder: RunFolder
    pool: ImagePool
    display: TrainingDisplay


def set_up(config: RunConfig, given: Backbone | None, display: TrainingDisplay, *, resumed: bool) -> RunSetup:
    """Check the plan, join the processes, read the images, load the backbone (if none is given), open the run folder.

    Raises an AsgError for whichever part is not good.
    """
    manifest = find_manifest(config.backbone) if given is None else given.manifest
    planned = check_plan(config, manifest)
    display.message(f"{config.backbone}: {config.steps} steps, {' and '.join(sorted(planned)) or 'none'}")
    device = resolve_device(config.device)
    out = config.out or Path("runs") / f"{config.backbone}-{datetime.now():%Y%m%d-%H%M%S}"
    accelerator = start_accelerator(device, config.trackers, out)
    processes = Processes(accelerator)
    out = Path(processes.gather(str(out))[0])
    pool = None if config.images is None else ImagePool(config.images, config.seed)
    own = device if processes.count == 1 else str(accelerator.device)
    backbone = given or load_base(
        config,
        device="cpu" if processes.sharded else own,  # from the CPU each layer goes to its devices
        dtype=resolve_dtype(config.dtype, device),
        gradient_checkpointing=config.gradient_checkpointing,
    )
    if processes.sharded:
        shard_base(backbone, accelerator.device, processes.count)
    check_free_space(out, backbone)
    folder = _open_folder(config, out, processes, resumed=resumed)
    try:
        if pool is None:
            if processes.is_main and not folder.images.is_dir():
                fill_directory(folder.images, lambda to: resolve(str(manifest.images))(to, config.seed))
            processes.gather(None)  # until it is filled
            pool = ImagePool(folder.images, config.seed)
        pool.on_quarantine = _quarantine(folder, processes, display)
        for file, why in pool.quarantined.items():
            pool.on_quarantine(Path(file), why)
    except BaseException:
        folder.close()
        raise
    return RunSetup(config, manifest, backbone, accelerator, processes, folder, pool, display)


def _open_folder(config: RunConfig, out: Path, processes: Processes, *, resumed: bool) -> RunFolder:
    if not processes.is_main:
        return RunFolder(out)
    if resumed:
        return RunFolder.reopen(out)
    folder = RunFolder.create(out)
    write_run_config(config.model_copy(update={"out": out}), folder.config)
    return folder


def _quarantine(folder: RunFolder, processes: Processes, display: TrainingDisplay) -> Callable[[Path, str], None]:
    def set_aside(file: Path, why: str) -> None:
        if not processes.is_main or str(file) in {row["file"] for row in read_json_lines(folder.quarantine)}:
            return  # written by the first process, or known before this run was resumed
        folder.append(folder.quarantine, {"file": str(file), "reason": why})
        display.message(f"quarantined {file}: {why}")

    return set_aside


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
