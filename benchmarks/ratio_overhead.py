"""What the core's own Python costs in a step whose model costs nothing."""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from asg_core.backbones.interface import Role, TextSample
from asg_core.data.image_pool import PoolImage
from asg_core.method.context import StepContext
from asg_core.method.losses import EmaBaseline
from asg_core.method.token_entropy import RollingPercentile
from asg_core.method.understanding import understanding_step
from asg_core.method.updates import StepResult, UpdateReport, proposer_groups, solver_groups
from asg_core.runs.folder import RunFolder
from asg_core.testing.qwen import QwenBackbone
from asg_core.testing.scripted_text import scripted_text
from asg_core.training.alarms import CollapseMonitor
from asg_core.training.metrics import understanding_metrics, update_metrics
from ratio_rows import Row
from ratio_subject import CONFIG, Subject, picture


class Replay:
    """A backbone whose calls cost nothing: it returns what another one returned to the same calls."""

    def __init__(self, backbone: QwenBackbone) -> None:
        self.manifest = backbone.manifest
        self.results: list[list[TextSample]] = []
        self._next = 0
        self._inner: QwenBackbone | None = backbone

    def stop(self) -> None:
        """From here on replay."""
        self._inner = None

    def _call(self, name: str, *args: Any) -> list[TextSample]:
        if self._inner is not None:
            self.results.append(getattr(self._inner, name)(*args))
            return self.results[-1]
        self._next += 1
        return self.results[(self._next - 1) % len(self.results)]

    def prefill(self, *args: Any) -> None:
        """Nothing: calls cost nothing anyway."""

    def ask(self, *args: Any) -> list[TextSample]:
        """See Backbone."""
        return self._call("ask", *args)

    def solve(self, *args: Any) -> list[TextSample]:
        """See Backbone."""
        return self._call("solve", *args)


def overhead(repetitions: int) -> list[Row]:
    """The core's own Python: parsing, votes, rewards, records, metrics, alarms, the line in metrics.jsonl."""
    rows = []
    for images in (1, 4):
        ours = Subject(QwenBackbone)
        replay: Any = Replay(ours.backbone)
        pool = [PoolImage(Path("x.png"), picture(i, 56)) for i in range(images)]
        with scripted_text(ours.backbone):
            understanding_step(replay, pool, StepContext(CONFIG, 1), RollingPercentile(), EmaBaseline())
        replay.stop()
        monitor, window, baseline = CollapseMonitor(CONFIG.alarms), RollingPercentile(), EmaBaseline()
        wall, cpu = [], []
        with tempfile.TemporaryDirectory() as folder:
            run = RunFolder.create(Path(folder) / "run")
            for i in range(20 * repetitions):
                started = time.perf_counter(), time.process_time()
                items = understanding_step(replay, pool, StepContext(CONFIG, 1), window, baseline)
                record: dict[str, Any] = {"step": i + 1, "kind": "understanding", **understanding_metrics(items)}
                groups = {Role.PROPOSER: proposer_groups(items), Role.SOLVER: solver_groups(items)}
                for role in groups:
                    record |= update_metrics(role, UpdateReport(StepResult(), None, 0, None), kl=None)
                monitor.observe(record | {"zero_variance_share": 0.0})
                run.append(run.metrics, record)
                wall.append(1000 * (time.perf_counter() - started[0]))
                cpu.append(1000 * (time.process_time() - started[1]))
            run.close()
        median = statistics.median(cpu)
        spread = f"{min(cpu):.2f} to {max(cpu):.2f}"
        value = f"{median:.2f} ms ({spread}) of CPU time, {statistics.median(wall):.2f} ms of wall time"
        bar = "<= 5 ms" if images == 1 else ""
        rows.append(Row(f"framework overhead of an understanding step, {images} image(s)", value, bar, median <= 5))
    return rows
