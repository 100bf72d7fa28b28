"""From a configuration to everything a run works with. Nothing is written before all of it is found good."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from accelerate import Accelerator

from asg_core.backbones.devices import resolve_device, resolve_dtype
from asg_core.backbones.interface import Backbone
from asg_core.backbones.manifest import BackboneManifest
from asg_core.backbones.registry import find_manifest, resolve
from asg_core.config.schema import RunConfig
from asg_core.data.image_pool import ImagePool
from asg_core.runs.configuration import write_run_config
from asg_core.runs.console import TrainingDisplay
from asg_core.runs.folder import RunFolder, fill_directory, read_json_lines
from asg_core.runs.opening import load_base
from asg_core.training.distributed import Processes, start_accelerator
from asg_core.training.fsdp import shard_base
from asg_core.training.preflight import check_free_space, check_plan


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

    Raises:
        AsgError: whichever part is not good.
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
    backbone = given or _load(config, device, accelerator, processes)
    if processes.sharded:
        shard_base(backbone, accelerator.device, processes.count)
    check_free_space(out, backbone)
    folder = _open_folder(config, out, processes, resumed=resumed)
    try:
        if pool is None:
            if processes.is_main and not folder.images.is_dir():
                fill_directory(folder.images, lambda to: resolve(str(manifest.images))(to, config.seed))
            processes.wait()
            pool = ImagePool(folder.images, config.seed)
        pool.on_quarantine = _quarantine(folder, processes, display)
        for file, why in pool.quarantined.items():
            pool.on_quarantine(Path(file), why)
    except BaseException:
        folder.close()
        raise
    return RunSetup(config, manifest, backbone, accelerator, processes, folder, pool, display)


def _load(config: RunConfig, device: str, accelerator: Accelerator, processes: Processes) -> Backbone:
    own = device if processes.count == 1 else str(accelerator.device)
    return load_base(
        config,
        device="cpu" if processes.sharded else own,  # from the CPU each layer goes to its devices
        dtype=resolve_dtype(config.dtype, device),
        gradient_checkpointing=config.gradient_checkpointing,
    )


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
