"""The training loop. The only place that knows schedule, images, steps, updates, checkpoints and alarms.

for step in 1..steps:
    images -> understanding_step -> update Proposer, update Solver      (three of five steps)
    images -> generation_step    -> update Generator                   (two of five)
    metrics, samples, alarms, checkpoint
"""

from __future__ import annotations

import signal
import time
from collections.abc import Sequence
from contextlib import nullcontext
from io import StringIO
from pathlib import Path
from types import FrameType
from typing import Any

from accelerate.utils import set_seed

from asg_core.backbones.interface import Backbone, Role
from asg_core.config.schema import RunConfig
from asg_core.data.image_pool import PoolImage
from asg_core.errors import CheckpointError, TrainingStopped
from asg_core.method import ablations
from asg_core.method.context import StepContext
from asg_core.method.generation import generation_step
from asg_core.method.generator_updates import update_generator
from asg_core.method.records import GenerationItem, Kind, UnderstandingItem
from asg_core.method.understanding import understanding_step
from asg_core.method.updates import proposer_groups, solver_groups, update_text_role
from asg_core.runs.configuration import load_run_config
from asg_core.runs.console import TrainingDisplay
from asg_core.runs.folder import RunFolder, disk_problems
from asg_core.runs.samples import write_samples
from asg_core.training.checkpoint import CheckpointManager
from asg_core.training.chunked import Chunked
from asg_core.training.distributed import launched_rank
from asg_core.training.finish import RunSummary, evaluate, finish_run
from asg_core.training.gather import ProcessGather
from asg_core.training.memory import MemoryRetry
from asg_core.training.metrics import generation_metrics, text_update_metrics, understanding_metrics, update_metrics
from asg_core.training.profiler import profiled
from asg_core.training.schedule import step_kind
from asg_core.training.setup import set_up
from asg_core.training.state import TEXT_ROLES, TrainState, check_consistency
from asg_core.training.stopping import react, stop_signals

Items = list[UnderstandingItem] | list[GenerationItem]


class Trainer:
    """One self-evolution run, ready to start: model loaded, images read, run folder open.

    Args:
        config: what to run; see ``RunConfig``.
        backbone: an already loaded model; None loads ``config.backbone``.
        display: progress display; None makes one for stderr.
        resumed: whether ``config.out`` is a run to go on with.

    Raises:
        AsgError: subclasses with cause and remedy; nothing is written before configuration, images and weights are
            found good.
    """

    def __init__(
        self,
        config: RunConfig,
        backbone: Backbone | None = None,
        display: TrainingDisplay | None = None,
        *,
        resumed: bool = False,
    ) -> None:
        self.config = config
        self.display = display or TrainingDisplay(config.steps, stream=None if launched_rank() == 0 else StringIO())
        with stop_signals(signal.default_int_handler):
            self.setup = set_up(config, backbone, self.display, resumed=resumed)
        self.backbone, self.processes, self.folder = self.setup.backbone, self.setup.processes, self.setup.folder
        self._stepping = False
        try:
            self.state = TrainState(config, self.backbone, self.setup.pool, self.setup.accelerator)
            self.checkpoints = CheckpointManager(self.folder.checkpoints, self.processes, self.display.message)
            self.retry = MemoryRetry(config, self.state, self.checkpoints.save_alone, self.display.message)
            # nothing of ours draws from the global generators, but a plugin may: each process has its own
            set_seed(config.seed, device_specific=True)
            if resumed:
                self.checkpoints.resume(self.state)
                if self.processes.is_main:
                    self.folder.truncate_metrics(self.state.step)
            check_consistency(self.processes, config, self.state)
            if config.trackers:
                self.setup.accelerator.init_trackers("asg", config={"config": config.model_dump_json()})
        except BaseException:
            self.folder.close()
            raise

    @classmethod
    def resume(
        cls,
        run: Path,
        steps: int | None = None,
        backbone: Backbone | None = None,
        display: TrainingDisplay | None = None,
    ) -> Trainer:
        """Return a trainer that continues the run in folder ``run`` from its newest good checkpoint, bit for bit.

        Args:
            run: the run folder.
            steps: new total number of steps, or None for the configured one.
            backbone, display: as for a new run.

        Raises:
            RunFolderError: ``run`` holds no run.
            CheckpointError: there are checkpoints and none is good, or the good one does not fit this run.
        """
        folder = RunFolder(run)
        if not folder.config.is_file():
            RunFolder.reopen(run)
        config = load_run_config(folder.config, []).model_copy(update={"out": run})
        if steps is not None:
            config = config.model_copy(update={"steps": steps})
        return cls(config, backbone, display, resumed=True)

    def run(self) -> RunSummary:
        """Train, evaluate before and after, write the run folder; return what happened. Call it once.

        SIGINT and SIGTERM finish the current step, save, and return with ``interrupted=True``; a second one exits now.
        With several processes the first one evaluates and writes; a signal to any of them stops all after one step.
        """
        with self.display, stop_signals(self._on_signal):
            try:
                with disk_problems(self.folder.path):
                    summary = self._run()
            finally:
                self.folder.close()
                for tracker in self.setup.accelerator.trackers:
                    tracker.finish()
            self.processes.leave()
            return summary

    def _run(self) -> RunSummary:
        state, config = self.state, self.config
        before = evaluate(self.setup, trained=False)
        stopped: TrainingStopped | None = None
        self._stepping = True
        try:
            profiling = config.profile and self.processes.is_main
            with profiled(self.backbone, self.folder.profile, self.display.message) if profiling else nullcontext():
                while state.step < config.steps and not self.processes.stopping:
                    self._one_step(state.step + 1)
        except TrainingStopped as error:
            stopped = error
        unsaved = self._save()
        self._stepping = False
        interrupted = self.processes.stopping and state.step < config.steps
        after = None if interrupted or stopped else evaluate(self.setup, trained=True)
        summary = finish_run(self.setup, state, before, after, interrupted or stopped is not None)
        if (problem := stopped or unsaved) is not None:
            raise problem
        if interrupted:
            self.display.message(f"saved after step {state.step}; go on with: asg train resume={self.folder.path}")
        return summary

    def _one_step(self, number: int) -> None:
        started = time.perf_counter()
        state = self.state
        kind = step_kind(number, self.config.steps, self.config.schedule)
        for attempt in self.retry.attempts(kind, TEXT_ROLES if kind == "understanding" else (Role.GENERATOR,)):
            with attempt:
                items, metrics = self._take_step(number, kind)
        seconds = time.perf_counter() - started
        state.step, state.seconds = number, state.seconds + seconds
        record = {"step": number, "kind": kind, "seconds": round(seconds, 4), "images": len(items), **metrics}
        if kind in state.images_at_once:
            record["images_at_once"] = state.images_at_once[kind]
        record["alarms"] = state.monitor.observe(record)
        if record["alarms"] and self.config.alarms.action == "rollback":
            record["rolled_back_to"] = self.checkpoints.roll_back(state, record["alarms"])
        if self.processes.is_main:
            self._record(record, items)
        react(record, state, self.config.alarms, self.display.message)
        if number % self.config.checkpoint_every_steps == 0:
            self._save()

    def _take_step(self, number: int, kind: Kind) -> tuple[Items, dict[str, Any]]:
        """Sample, score and update; return the items of all processes and the step's metrics."""
        config, processes = self.config, self.processes
        count = config.images_per_step if kind == "understanding" else config.generate.prompts_per_step
        at_once = self.state.images_at_once.get(kind, 0)
        model = Chunked(self.backbone, at_once) if at_once else self.backbone
        ctx = StepContext(config, number, ProcessGather(processes), processes.share(count).start, at_once)
        images = ablations.images(model, self.setup.pool.take(count, processes), ctx)
        take = self._understanding if kind == "understanding" else self._generation
        return take(model, images, ctx)

    def _understanding(
        self, model: Backbone, images: Sequence[PoolImage], ctx: StepContext
    ) -> tuple[list[UnderstandingItem], dict[str, Any]]:
        learners = self.state.learners
        items = understanding_step(model, images, ctx, self.state.window, self.state.baseline)
        reports = {
            Role.PROPOSER: update_text_role(model, proposer_groups(items), learners[Role.PROPOSER], ctx),
            Role.SOLVER: update_text_role(model, solver_groups(items), learners[Role.SOLVER], ctx),
        }
        return items, understanding_metrics(items) | text_update_metrics(reports, learners)

    def _generation(
        self, model: Backbone, images: Sequence[PoolImage], ctx: StepContext
    ) -> tuple[list[GenerationItem], dict[str, Any]]:
        items = generation_step(model, images, ctx)
        report = update_generator(model, items, self.state.learners[Role.GENERATOR], ctx)
        tokens = self.setup.manifest.capabilities.image_loss == "tokens"
        metrics = update_metrics(Role.GENERATOR, report, penalty=report.kl, kl=report.kl if tokens else None)
        return items, generation_metrics(items) | metrics | {
            "nonfinite": report.dropped + report.step.nonfinite,
            "zero_variance_share": report.zero_variance_share,
        }

    def _record(self, record: dict[str, Any], items: Items) -> None:
        number = record["step"]
        self.folder.append(self.folder.metrics, record)
        self.display.step(record)
        if self.config.trackers:
            numbers = {key: value for key, value in record.items() if isinstance(value, (int, float))}
            self.setup.accelerator.log(numbers, step=number)
        if number == 1 or number % self.config.sample_every_steps == 0:
            write_samples(self.folder.samples, number, [item for item in items if item.mine])

    def _save(self) -> CheckpointError | None:
        check_consistency(self.processes, self.config, self.state)
        return self.checkpoints.save(self.state)

    def _on_signal(self, number: int, _: FrameType | None) -> None:
        """First SIGINT or SIGTERM: stop after this step. Second, or one while no step is under way: exit at once."""
        if self.processes.stop_requested or not self._stepping:
            raise KeyboardInterrupt
        self.processes.stop_requested = True
        self.display.message(f"{signal.Signals(number).name}: finishing this step, then saving (again: exit now)")
