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
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path
from types import FrameType
from typing import Any

from accelerate import Accelerator
from accelerate.utils import set_seed

from asg_core import checkpoint
from asg_core.config import RunConfig
from asg_core.config_io import load_run_config, write_run_config
from asg_core.devices import resolve_device
from asg_core.entropy import RollingPercentile
from asg_core.errors import ConfigError, TrainingStopped
from asg_core.images import ImagePool
from asg_core.monitor import CollapseMonitor, generation_metrics, understanding_metrics, update_metrics
from asg_core.optimiser import RoleOptimiser
from asg_core.plugins import find_manifest, load_backbone, resolve
from asg_core.policy import AdaptiveKl, EmaBaseline
from asg_core.progress import TrainingDisplay
from asg_core.roles import Backbone, Role
from asg_core.run_folder import RunFolder, read_json_lines
from asg_core.samples import write_samples
from asg_core.schedule import kinds, step_kind
from asg_core.steps.generation import generation_step
from asg_core.steps.records import GenerationItem, UnderstandingItem
from asg_core.steps.understanding import understanding_step
from asg_core.steps.update import proposer_groups, solver_groups, update_generator, update_text_role
from asg_core.summary import RunSummary, evaluate, finish_run

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
        self.display = display or TrainingDisplay(config.steps)
        self._resumed_from: Path | None = None
        self._given = backbone
        self._stop_requested = False
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
        """
        with self.display, self._signals():
            self._prepare()
            try:
                return self._run()
            finally:
                self.folder.close()
                if self.config.trackers:
                    self.accelerator.end_training()

    # -- set-up -------------------------------------------------------------------------------------------------------

    def _prepare(self) -> None:
        config = self.config
        self.manifest = find_manifest(config.backbone) if self._given is None else self._given.manifest
        self._check_plan()
        device = resolve_device(config.device)
        out = config.out or Path("runs") / f"{config.backbone}-{datetime.now():%Y%m%d-%H%M%S}"
        trackers = list(config.trackers) or None
        self.accelerator = Accelerator(cpu=device == "cpu", log_with=trackers, project_dir=str(out))
        if self.accelerator.num_processes > 1:
            raise ConfigError(
                f"{self.accelerator.num_processes} processes were launched",
                "this version trains in one process",
                "start it with 'asg train' instead of a launcher",
            )
        quarantined: list[tuple[Path, str]] = []
        pool = None
        if config.images is not None:
            pool = ImagePool(config.images, config.seed, lambda file, why: quarantined.append((file, why)))
        self.backbone = self._given or load_backbone(
            config.backbone,
            weights=config.weights,
            device=device,
            dtype=config.dtype,
            options=config.backbone_options,
            lora=config.lora,
            seed=config.seed,
            gradient_checkpointing=config.gradient_checkpointing,
        )
        if self._resumed_from is None:
            self.folder = RunFolder.create(out)
            write_run_config(config.model_copy(update={"out": out}), self.folder.config)
        else:
            self.folder = RunFolder.reopen(out)
        for file, why in quarantined:
            self._quarantine(file, why)
        self.pool = pool or self._own_images()
        self.pool.on_quarantine = self._quarantine
        self._make_state()
        if config.trackers:
            self.accelerator.init_trackers("asg", config={"config": config.model_dump_json()})

    def _check_plan(self) -> None:
        """Refuse what the backbone cannot do before anything is loaded, and say what will be done."""
        config, can = self.config, self.manifest.capabilities
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
        if config.images is None and self.manifest.images is None:
            raise ConfigError(
                "no images were given", f"backbone {config.backbone!r} brings none of its own", "add images=FOLDER"
            )
        self.display.message(f"{config.backbone}: {config.steps} steps, {' and '.join(sorted(planned)) or 'none'}")

    def _own_images(self) -> ImagePool:
        if not self.folder.images.is_dir():
            self.folder.images.mkdir()
            resolve(str(self.manifest.images))(self.folder.images, self.config.seed)
        return ImagePool(self.folder.images, self.config.seed, self._quarantine)

    def _quarantine(self, file: Path, why: str) -> None:
        if str(file) in {row["file"] for row in read_json_lines(self.folder.quarantine)}:
            return  # known before this run was resumed
        self.folder.append(self.folder.quarantine, {"file": str(file), "reason": why})
        self.display.message(f"quarantined {file}: {why}")

    def _make_state(self) -> None:
        config, settings = self.config, self.config.optimiser
        rates = {
            Role.PROPOSER: settings.lr_proposer,
            Role.SOLVER: settings.lr_solver,
            Role.GENERATOR: settings.lr_generator,
        }
        self.optimisers = {
            role: RoleOptimiser(
                self.backbone.trainable(role), lr, settings.weight_decay, settings.max_grad_norm, self.accelerator
            )
            for role, lr in rates.items()
        }
        self.betas = {role: AdaptiveKl(config.policy.beta_start, config.policy.kl_target) for role in TEXT_ROLES}
        self.window = RollingPercentile()
        self.baseline = EmaBaseline()
        self.monitor = CollapseMonitor(config.alarms)
        self.nonfinite_in_a_row = 0
        self.step = 0
        self.seconds = 0.0
        set_seed(config.seed)  # nothing of ours draws from the global generators, but a plugin may
        if self._resumed_from is not None:
            self._restore()

    def _restore(self) -> None:
        found, state, errors = checkpoint.newest_good(self.folder.checkpoints)
        for error in errors:
            self.display.message(f"{error.what}: {error.why}; using {found.name}")
        checkpoint.restore(found, self.backbone, self.optimisers, state)
        for role in TEXT_ROLES:
            self.betas[role].beta = state["betas"][role.value]
        self.window.restore(state["window"])
        self.baseline.value = state["baseline"]
        self.monitor.restore(state["monitor"])
        self.pool.restore(state["pool"])
        self.nonfinite_in_a_row, self.step, self.seconds = state["nonfinite_in_a_row"], state["step"], state["seconds"]
        self.folder.truncate_metrics(self.step)
        self.display.message(f"resuming after step {self.step} from {found}")

    # -- the loop -----------------------------------------------------------------------------------------------------

    def _run(self) -> RunSummary:
        before = evaluate(self, evolved=False)
        stopped: TrainingStopped | None = None
        self._stepping = True
        try:
            while self.step < self.config.steps and not self._stop_requested:
                self._one_step()
        except TrainingStopped as error:
            stopped = error
        self._save()
        self._stepping = False
        interrupted = self._stop_requested and self.step < self.config.steps
        after = None if interrupted or stopped else evaluate(self, evolved=True)
        summary = finish_run(self, before, after, interrupted or stopped is not None)
        if stopped is not None:
            raise stopped
        if interrupted:
            self.display.message(f"saved after step {self.step}; go on with: asg train resume={self.folder.path}")
        return summary

    def _one_step(self) -> None:
        started = time.perf_counter()
        number = self.step + 1
        kind = step_kind(number, self.config.steps, self.config.schedule)
        items, metrics = self._understanding(number) if kind == "understanding" else self._generation(number)
        self.step = number
        seconds = time.perf_counter() - started
        self.seconds += seconds
        record = {"step": number, "kind": kind, "seconds": round(seconds, 4), "images": len(items), **metrics}
        record["alarms"] = self.monitor.observe(record)
        self.folder.append(self.folder.metrics, record)
        self.display.step(record)
        if self.config.trackers:
            self.accelerator.log({k: v for k, v in record.items() if isinstance(v, (int, float))}, step=number)
        if number == 1 or number % self.config.sample_every_steps == 0:
            write_samples(self.folder.samples, number, items)
        self._react(record)
        if number % self.config.checkpoint_every_steps == 0:
            self._save()

    def _understanding(self, number: int) -> tuple[list[UnderstandingItem], dict[str, Any]]:
        images = self.pool.take(self.config.images_per_step)
        items = understanding_step(self.backbone, images, self.config, number, self.window, self.baseline)
        metrics = understanding_metrics(items)
        groups = {Role.PROPOSER: proposer_groups(items), Role.SOLVER: solver_groups(items)}
        nonfinite, shares = 0, []
        for role in TEXT_ROLES:
            beta = self.betas[role]
            report = update_text_role(self.backbone, role, groups[role], self.optimisers[role], beta, self.config)
            metrics |= update_metrics(role, report, kl=report.kl, beta=beta.beta)
            nonfinite += report.dropped + report.step.nonfinite
            shares.append(report.zero_variance_share)
        present = [s for s in shares if s is not None]
        metrics |= {"nonfinite": nonfinite, "zero_variance_share": sum(present) / len(present) if present else None}
        return items, metrics

    def _generation(self, number: int) -> tuple[list[GenerationItem], dict[str, Any]]:
        images = self.pool.take(self.config.generate.prompts_per_step)
        items = generation_step(self.backbone, images, self.config, number)
        report = update_generator(self.backbone, items, self.optimisers[Role.GENERATOR], self.config, number)
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
            if limits.action == "stop":
                raise TrainingStopped(
                    f"alarm after step {self.step}: {names}",
                    f"the mean over the last {limits.window} steps crossed its limit and alarms.action is stop",
                    "read docs/alarms.md; lower the learning rates or change the limits, then resume",
                )

    def _save(self) -> None:
        state = {
            "betas": {role.value: self.betas[role].beta for role in TEXT_ROLES},
            "window": self.window.state(),
            "baseline": self.baseline.value,
            "monitor": self.monitor.state(),
            "pool": self.pool.state(),
            "nonfinite_in_a_row": self.nonfinite_in_a_row,
            "seconds": self.seconds,
        }
        checkpoint.save_checkpoint(self.folder.checkpoints, self.step, self.backbone, self.optimisers, state)

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """First SIGINT or SIGTERM: stop after this step. Second, or one while no step is under way: exit at once."""

        def handle(number: int, _: FrameType | None) -> None:
            if self._stop_requested or not self._stepping:
                raise KeyboardInterrupt
            self._stop_requested = True
            self.display.message(f"{signal.Signals(number).name}: finishing this step, then saving (again: exit now)")

        try:
            previous = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
        except ValueError:  # not in the main thread: the embedding program handles signals
            previous = {}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
