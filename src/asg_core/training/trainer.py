"""The training loop: schedule, images, steps, updates, checkpoints. The only place that knows all of them.

for step in 1..steps:
    images -> understanding_step -> update Proposer, update Solver      (three of five steps)
    images -> generation_step    -> update Generator                   (two of five)
    metrics, samples, alarms, checkpoint

asg train                                           the embedded backbone on its own unlabeled images
asg train backbone=bagel weights=DIR images=DIR     your images, your model
"""

from __future__ import annotations

import signal
import time
from collections.abc import Sequence
from datetime import datetime
from io import StringIO
from pathlib import Path
from types import FrameType
from typing import Any

from accelerate.utils import set_seed

from asg_core.backbones.devices import resolve_device, resolve_dtype
from asg_core.backbones.interface import Backbone, Role
from asg_core.backbones.registry import find_manifest, load_backbone, resolve
from asg_core.config.schema import RunConfig
from asg_core.data.image_pool import ImagePool, PoolImage
from asg_core.errors import CheckpointError, TrainingStopped
from asg_core.method.ablations import self_drawn_images
from asg_core.method.generation import generation_step
from asg_core.method.generator_updates import update_generator
from asg_core.method.policy import AdaptiveKl, EmaBaseline
from asg_core.method.records import GenerationItem, Kind, UnderstandingItem
from asg_core.method.replay import NoiseFloor
from asg_core.method.token_entropy import RollingPercentile
from asg_core.method.understanding import understanding_step
from asg_core.method.updates import proposer_groups, solver_groups, update_text_role
from asg_core.runs.configuration import load_run_config, write_run_config
from asg_core.runs.console import TrainingDisplay
from asg_core.runs.folder import RunFolder, disk_problems, fill_directory, read_json_lines
from asg_core.runs.samples import write_samples
from asg_core.training import recovery
from asg_core.training.alarms import CollapseMonitor, generation_metrics, understanding_metrics, update_metrics
from asg_core.training.checkpoint import check_free_space
from asg_core.training.chunked import in_chunks
from asg_core.training.consistency import described, state_digest
from asg_core.training.distributed import Processes, launched_rank, start_accelerator
from asg_core.training.finish import RunSummary, evaluate, finish_run
from asg_core.training.fsdp import shard_base
from asg_core.training.optimizer import RoleOptimizer
from asg_core.training.preflight import check_plan
from asg_core.training.profiler import profiled
from asg_core.training.schedule import step_kind
from asg_core.training.stop_signals import stop_signals

TEXT_ROLES = (Role.PROPOSER, Role.SOLVER)


class Trainer:
    """One self-evolution run.

    Args:
        config: what to run; see ``RunConfig``.
        backbone: an already loaded model; None loads ``config.backbone``.
        display: progress display; None makes one for stderr.

    :meth:`run` raises AsgError subclasses with cause and remedy; nothing is written before configuration, images and
    weights are found good.
    """

    def __init__(
        self, config: RunConfig, backbone: Backbone | None = None, display: TrainingDisplay | None = None
    ) -> None:
        self.config = config
        self.display = display or TrainingDisplay(config.steps, stream=None if launched_rank() == 0 else StringIO())
        self.processes = Processes()
        self._resumed_from: Path | None = None
        self._given = backbone
        self._stepping = False

    @classmethod
    def resume(
        cls,
        run: Path,
        steps: int | None = None,
        backbone: Backbone | None = None,
        display: TrainingDisplay | None = None,
    ) -> Trainer:
        """Continue the run in folder ``run`` from its newest good checkpoint, bit for bit.

        Args:
            steps: new total number of steps, or None for the configured one.
        """
        folder = RunFolder(run)
        if not folder.config.is_file():
            RunFolder.reopen(run)
        config = load_run_config(folder.config, []).model_copy(update={"out": run})
        trainer = cls(config if steps is None else config.model_copy(update={"steps": steps}), backbone, display)
        trainer._resumed_from = run
        return trainer

    def run(self) -> RunSummary:
        """Train, evaluate before and after, write the run folder; returns what happened.

        SIGINT and SIGTERM finish the current step, save, and return with ``interrupted=True``; a second one exits now.
        With several processes the first one evaluates and writes; a signal to any of them stops all after one step.
        """
        with self.display, stop_signals(self._on_signal):
            self._prepare()
            try:
                with disk_problems(self.folder.path):
                    summary = self._run()
            finally:
                self.folder.close()
                for tracker in self.accelerator.trackers:
                    tracker.finish()
            self.processes.leave()
            return summary

    # -- set-up -------------------------------------------------------------------------------------------------------

    def _prepare(self) -> None:
        config = self.config
        self.manifest = find_manifest(config.backbone) if self._given is None else self._given.manifest
        planned = check_plan(config, self.manifest)
        self.display.message(f"{config.backbone}: {config.steps} steps, {' and '.join(sorted(planned)) or 'none'}")
        device = resolve_device(config.device)
        out = config.out or Path("runs") / f"{config.backbone}-{datetime.now():%Y%m%d-%H%M%S}"
        self.accelerator = start_accelerator(device, config.trackers, out)
        self.processes = Processes(self.accelerator)
        out = Path(self.processes.gather(str(out))[0])
        quarantined: list[tuple[Path, str]] = []
        pool = None
        if config.images is not None:
            pool = ImagePool(config.images, config.seed, lambda file, why: quarantined.append((file, why)))
        self.backbone = self._given or load_backbone(
            config.backbone,
            weights=config.weights,
            device=self._loading_device(device),
            dtype=resolve_dtype(config.dtype, device),
            options=config.backbone_options,
            lora=config.lora,
            seed=config.seed,
            gradient_checkpointing=config.gradient_checkpointing,
        )
        if self.processes.sharded:
            shard_base(self.backbone, self.accelerator.device, self.processes.count)
        check_free_space(out, self.backbone)
        if not self.processes.is_main:
            self.folder = RunFolder(out)
        elif self._resumed_from is None:
            self.folder = RunFolder.create(out)
            write_run_config(config.model_copy(update={"out": out}), self.folder.config)
        else:
            self.folder = RunFolder.reopen(out)
        for file, why in quarantined:
            self._quarantine(file, why)
        self.pool = pool or self._own_images()
        self.pool.on_quarantine = self._quarantine
        self._make_state()
        self._require_agreement(f"after step {self.step}")
        if config.trackers:
            self.accelerator.init_trackers("asg", config={"config": config.model_dump_json()})

    def _loading_device(self, device: str) -> str:
        if self.processes.sharded:
            return "cpu"  # from where each layer goes to its devices
        return device if self.processes.count == 1 else str(self.accelerator.device)

    def _own_images(self) -> ImagePool:
        if self.processes.is_main and not self.folder.images.is_dir():
            fill_directory(self.folder.images, lambda to: resolve(str(self.manifest.images))(to, self.config.seed))
        self.processes.wait()
        return ImagePool(self.folder.images, self.config.seed, self._quarantine)

    def _quarantine(self, file: Path, why: str) -> None:
        if not self.processes.is_main or str(file) in {row["file"] for row in read_json_lines(self.folder.quarantine)}:
            return  # written by the first process, or known before this run was resumed
        self.folder.append(self.folder.quarantine, {"file": str(file), "reason": why})
        self.display.message(f"quarantined {file}: {why}")

    def _make_state(self) -> None:
        config, settings = self.config, self.config.optimizer
        rates = {
            Role.PROPOSER: settings.lr_proposer,
            Role.SOLVER: settings.lr_solver,
            Role.GENERATOR: settings.lr_generator,
        }
        self.optimizers = {
            role: RoleOptimizer(
                self.backbone.trainable(role), lr, settings.weight_decay, settings.max_grad_norm, self.accelerator
            )
            for role, lr in rates.items()
        }
        self.betas = {role: AdaptiveKl(config.policy.beta_start, config.policy.kl_target) for role in TEXT_ROLES}
        self.floors = {role: NoiseFloor() for role in Role}
        self.window = RollingPercentile()
        self.baseline = EmaBaseline()
        self.monitor = CollapseMonitor(config.alarms)
        self.nonfinite_in_a_row = 0
        self.images_at_once: dict[Kind, int] = {}
        self.rolled_back_for: tuple[str, ...] = ()
        self.step = 0
        self.seconds = 0.0
        # nothing of ours draws from the global generators, but a plugin may: each process has its own
        set_seed(config.seed, device_specific=True)
        if self._resumed_from is not None:
            recovery.resume(self)

    # -- the loop -----------------------------------------------------------------------------------------------------

    def _run(self) -> RunSummary:
        before = evaluate(self, trained=False)
        stopped: TrainingStopped | None = None
        self._stepping = True
        try:
            profiling = self.config.profile and self.processes.is_main
            with profiled(self.backbone, self.folder.profile, self.display.message, on=profiling):
                while self.step < self.config.steps and not self.processes.stopping:
                    self._one_step()
        except TrainingStopped as error:
            stopped = error
        unsaved = self._save()
        self._stepping = False
        interrupted = self.processes.stopping and self.step < self.config.steps
        after = None if interrupted or stopped else evaluate(self, trained=True)
        summary = finish_run(self, before, after, interrupted or stopped is not None)
        if (problem := stopped or unsaved) is not None:
            raise problem
        if interrupted:
            self.display.message(f"saved after step {self.step}; go on with: asg train resume={self.folder.path}")
        return summary

    def _one_step(self) -> None:
        started = time.perf_counter()
        number = self.step + 1
        kind = step_kind(number, self.config.steps, self.config.schedule)
        roles, take = (
            (TEXT_ROLES, self._understanding) if kind == "understanding" else ((Role.GENERATOR,), self._generation)
        )
        items, metrics = recovery.whole_step(self, kind, roles, lambda: take(number))
        self.step = number
        seconds = time.perf_counter() - started
        self.seconds += seconds
        record = {"step": number, "kind": kind, "seconds": round(seconds, 4), "images": len(items), **metrics}
        if kind in self.images_at_once:
            record["images_at_once"] = self.images_at_once[kind]
        record["alarms"] = self.monitor.observe(record)
        if record["alarms"] and self.config.alarms.action == "rollback":
            record["rolled_back_to"] = recovery.roll_back(self, record["alarms"])
        if self.processes.is_main:
            self._record(record, items)
        self._react(record)
        if number % self.config.checkpoint_every_steps == 0:
            self._save()

    def _record(self, record: dict[str, Any], items: Sequence[UnderstandingItem | GenerationItem]) -> None:
        number = record["step"]
        self.folder.append(self.folder.metrics, record)
        self.display.step(record)
        if self.config.trackers:
            self.accelerator.log({k: v for k, v in record.items() if isinstance(v, (int, float))}, step=number)
        if number == 1 or number % self.config.sample_every_steps == 0:
            write_samples(self.folder.samples, number, [item for item in items if item.mine])

    def _take(self, backbone: Backbone, count: int, first: int, number: int) -> list[PoolImage]:
        images = self.pool.take(count, self.processes)
        if self.config.control != "own_drawings":
            return images
        return self_drawn_images(backbone, images, self.config, number, first)

    def _understanding(self, number: int) -> tuple[list[UnderstandingItem], dict[str, Any]]:
        config, first = self.config, self.processes.share(self.config.images_per_step).start
        at_once = self.images_at_once.get("understanding", 0)
        backbone = in_chunks(self.backbone, at_once)
        images = self._take(backbone, config.images_per_step, first, number)
        items = understanding_step(backbone, images, config, number, self.window, self.baseline, self.processes, first)
        metrics = understanding_metrics(items)
        mine = [item for item in items if item.mine]
        groups = {Role.PROPOSER: proposer_groups, Role.SOLVER: solver_groups}
        nonfinite, shares = 0, []
        for role in TEXT_ROLES:
            beta = self.betas[role]
            own, whole = groups[role](mine), groups[role](items)
            report = update_text_role(
                backbone, role, own, self.optimizers[role], beta, config, whole, at_once, self.floors[role]
            )
            metrics |= update_metrics(role, report, kl=report.kl, beta=beta.beta)
            nonfinite += report.dropped + report.step.nonfinite
            shares.append(report.zero_variance_share)
        present = [s for s in shares if s is not None]
        metrics |= {"nonfinite": nonfinite, "zero_variance_share": sum(present) / len(present) if present else None}
        return items, metrics

    def _generation(self, number: int) -> tuple[list[GenerationItem], dict[str, Any]]:
        prompts = self.config.generate.prompts_per_step
        first = self.processes.share(prompts).start
        at_once = self.images_at_once.get("generation", 0)
        backbone = in_chunks(self.backbone, at_once)
        images = self._take(backbone, prompts, first, number)
        items = generation_step(backbone, images, self.config, number, self.processes, first)
        optimizer, floor = self.optimizers[Role.GENERATOR], self.floors[Role.GENERATOR]
        report = update_generator(backbone, items, optimizer, self.config, number, at_once, floor)
        tokens = self.manifest.capabilities.image_loss == "tokens"
        metrics = generation_metrics(items)
        metrics |= update_metrics(Role.GENERATOR, report, penalty=report.kl, kl=report.kl if tokens else None)
        return items, metrics | {
            "nonfinite": report.dropped + report.step.nonfinite,
            "zero_variance_share": report.zero_variance_share,
        }

    def _react(self, record: dict[str, Any]) -> None:
        limits = self.config.alarms
        self.nonfinite_in_a_row = self.nonfinite_in_a_row + 1 if record["nonfinite"] else 0
        if self.nonfinite_in_a_row >= limits.max_nonfinite:
            raise TrainingStopped(
                f"{self.nonfinite_in_a_row} steps in a row had non-finite values (last: step {self.step})",
                "a logit, reward, loss or gradient was NaN or infinite; those samples and updates were dropped",
                "lower the learning rates, use dtype=float32, or resume from an earlier checkpoint",
            )
        if record["alarms"]:
            names = ", ".join(record["alarms"])
            self.display.message(f"alarm after step {self.step}: {names}")
            if record.get("rolled_back_to") is not None:
                self.display.message(f"rolled back to the roles of step {record['rolled_back_to']}")
            elif limits.action != "warn":
                raise TrainingStopped(
                    f"alarm after step {self.step}: {names}",
                    f"the mean over the last {limits.window} steps crossed its limit; alarms.action is {limits.action}"
                    + (", and there is no other checkpoint to go back to" if limits.action == "rollback" else ""),
                    "read docs/alarms.md; lower the learning rates or change the limits, then resume",
                )

    def _require_agreement(self, when: str) -> None:
        if self.processes.count > 1:
            state = {"state after training so far": state_digest(self.optimizers, recovery.state_of(self))}
            self.processes.require_equal(described(self.config) | state, when)

    def _save(self) -> CheckpointError | None:
        self._require_agreement(f"after step {self.step}")
        return recovery.save(self)

    def _on_signal(self, number: int, _: FrameType | None) -> None:
        """First SIGINT or SIGTERM: stop after this step. Second, or one while no step is under way: exit at once."""
        if self.processes.stop_requested or not self._stepping:
            raise KeyboardInterrupt
        self.processes.stop_requested = True
        self.display.message(f"{signal.Signals(number).name}: finishing this step, then saving (again: exit now)")
