"""What sharing, batching and capturing save, as ratios that survive a slow machine; RESULTS.md has the table.

    python benchmarks/ratios.py                    prints the table
    python benchmarks/ratios.py --write "run 1"    and puts it into RESULTS.md

An 8-layer Qwen2.5-VL with random weights takes the method's own step twice: through the core, and one request at a time
(``sequential.py``). Both are asserted to give the same numbers, then timed in turn, one thread, one process; a ratio is
the median over pairs of CPU times. Three runs of the whole script are the evidence; RESULTS.md keeps them.
"""

from __future__ import annotations

import argparse
import gc
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from PIL import Image

from asg_core.backbones.interface import ImageRequest, ImageSampling, Role, TextSample
from asg_core.backbones.registry import load_backbone
from asg_core.config.schema import RunConfig
from asg_core.data.image_pool import PoolImage
from asg_core.method.advantages import EmaBaseline
from asg_core.method.context import StepContext
from asg_core.method.learner import Learner, StepResult, UpdateReport
from asg_core.method.losses import AdaptiveKl
from asg_core.method.records import UnderstandingItem
from asg_core.method.token_entropy import RollingPercentile
from asg_core.method.understanding import understanding_step
from asg_core.method.updates import Groups, proposer_groups, solver_groups, update_text_role
from asg_core.runs.folder import RunFolder
from asg_core.testing.qwen import QwenBackbone, random_qwen
from asg_core.testing.scripted_text import scripted_text
from asg_core.training.alarms import CollapseMonitor, understanding_metrics, update_metrics
from asg_core.training.optimizer import RoleOptimizer
from results import machine, write_section
from sequential import SequentialQwen

CONFIG = RunConfig.model_validate(
    {
        "ask": {"max_new_tokens": 16},
        "solve": {"max_new_tokens": 6, "min_agreement": 0.0},
        "optimizer": {"lr_proposer": 1e-3, "lr_solver": 1e-3},
        "ablation": "random_rewards",
    }
)
TEXT_ROLES = (Role.PROPOSER, Role.SOLVER)


@dataclass(frozen=True)
class Row:
    """One line of the table: what, the value and its spread, and the bar it has to reach ("" without one)."""

    name: str
    value: str
    bar: str = ""
    passed: bool = True


def picture(seed: int, side: int) -> Image.Image:
    """Noise; 224 pixels are 64 tokens, 448 are 256."""
    noise = torch.randint(0, 256, (side, side, 3), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    return Image.fromarray(noise.numpy())


class Subject:
    """A model with its optimizers, that takes a step and forgets it."""

    def __init__(self, kind: type[QwenBackbone]) -> None:
        self.backbone = kind(random_qwen(layers=8, width=64, mlp=128, heads=4), letters_per_token=4, scale=0.02)
        self.backbone.text.stop_token_ids = frozenset()  # every completion has its full length
        accelerator = Accelerator(cpu=True)
        self.optimizers = {
            role: RoleOptimizer(self.backbone.trainable(role), 1e-3, 0.01, 1.0, accelerator) for role in TEXT_ROLES
        }
        self._start = {role: [p.clone() for p in self.backbone.trainable(role).values()] for role in TEXT_ROLES}

    def reset(self) -> None:
        """Weights, moments and caches as in the beginning."""
        with torch.no_grad():
            for role in TEXT_ROLES:
                for parameter, value in zip(self.backbone.trainable(role).values(), self._start[role], strict=True):
                    parameter.copy_(value)
                self.optimizers[role].restore({})
        self.backbone.text.features.clear()
        self.backbone._prefixes.clear()

    def sampled(self, images: Sequence[Image.Image]) -> list[UnderstandingItem]:
        """The understanding step without its updates."""
        pool = [PoolImage(Path("x.png"), image) for image in images]
        with scripted_text(self.backbone):
            return understanding_step(self.backbone, pool, StepContext(CONFIG, 1), RollingPercentile(), EmaBaseline())

    def update(self, role: Role, groups: Groups) -> UpdateReport:
        """One update."""
        learner = Learner(role, self.optimizers[role], AdaptiveKl(0.01, 0.02))
        return update_text_role(self.backbone, groups, learner, StepContext(CONFIG, 1))

    def step(self, images: Sequence[Image.Image]) -> tuple[list[UnderstandingItem], list[UpdateReport]]:
        """The whole step."""
        items = self.sampled(images)
        return items, [
            self.update(Role.PROPOSER, proposer_groups(items)),
            self.update(Role.SOLVER, solver_groups(items)),
        ]


def assert_same_step(ours: Subject, plain: Subject, image: Image.Image) -> None:
    """Tokens and votes equal; log-probs, entropies, losses, KL and gradient norms equal up to rounding."""
    (a, reports), (b, plain_reports) = (subject.step([image]) for subject in (ours, plain))
    for p, q in zip(a[0].questions, b[0].questions, strict=True):
        pairs = [(p.completion, q.completion), (p.greedy, q.greedy)]
        pairs += [(x.sample, y.sample) for x, y in zip(p.answers, q.answers, strict=True)]
        for x, y in pairs:
            assert x is not None
            assert y is not None
            assert x.token_ids == y.token_ids
            close(x.logprobs, y.logprobs)
            close(x.entropies, y.entropies)
        assert p.vote == q.vote
        close([p.advantage, *(x.advantage for x in p.answers)], [q.advantage, *(y.advantage for y in q.answers)])
    for report, other in zip(reports, plain_reports, strict=True):
        assert report.step.applied
        assert other.step.applied
        close([report.step.loss, report.step.grad_norm, report.kl], [other.step.loss, other.step.grad_norm, other.kl])


def close(a: Any, b: Any) -> None:
    """Equal up to float32 rounding."""
    torch.testing.assert_close(torch.tensor(a), torch.tensor(b), rtol=2e-3, atol=2e-4)


def timed(run: Callable[[], Any]) -> float:
    """Seconds of CPU time, which on one thread is what an idle machine would take."""
    started = time.process_time()
    run()
    return time.process_time() - started


def ratio(
    name: str,
    ours: Callable[[], Any],
    other: Callable[[], Any],
    before: Callable[[], None],
    bar: float,
    repetitions: int,
) -> Row:
    """Time ``other`` / ``ours``, run in turn; ``before`` is called before each and not timed."""
    pairs = []
    for i in range(repetitions):
        seconds = {}
        for which in (ours, other) if i % 2 else (other, ours):
            before()
            seconds[which is ours] = timed(which)
        pairs.append((seconds[True], seconds[False]))
    ratios = sorted(b / a for a, b in pairs)
    median = statistics.median(ratios)
    mine, plain = (1000 * statistics.median(column) for column in zip(*pairs, strict=True))
    value = f"{median:.2f}x ({ratios[0]:.2f} to {ratios[-1]:.2f}); {plain:.0f} ms / {mine:.0f} ms"
    return Row(name, value, f">= {bar}x" if bar else "", median >= bar)


def step_ratios(repetitions: int) -> list[Row]:
    """Understanding step and solver update against the sequential loop."""
    ours, plain = Subject(QwenBackbone), Subject(SequentialQwen)
    rows = []

    def reset() -> None:
        ours.reset()
        plain.reset()

    for side, tokens, step_bar, update_bar in ((224, 64, 2.8, 0), (448, 256, 3.7, 4.5)):
        image = picture(1, side)
        reset()
        assert_same_step(ours, plain, image)
        reset()
        groups = solver_groups(ours.sampled([image]))

        def step(subject: Subject, image: Image.Image = image) -> None:
            subject.step([image.copy()])  # of a copy nothing is known

        def update(subject: Subject, groups: Groups = groups) -> None:
            subject.update(Role.SOLVER, groups)

        for name, run, bar in (
            ("understanding step", step, step_bar),
            ("solver update, 3 questions x 7 answers", update, update_bar),
        ):
            pair = partial(run, ours), partial(run, plain)
            rows.append(ratio(f"{name}, {tokens} image tokens", *pair, reset, bar, repetitions))
    return rows


def guidance_ratio(repetitions: int) -> list[Row]:
    """Two guidance branches against BAGEL's three, on the plugin's recorded tiny checkpoint, where it is installed."""
    name = "two-branch guidance (BAGEL, 8 images)"
    checkpoint = Path(__file__).parents[1] / "plugins/asg_bagel/tests/fixtures/golden/checkpoint"
    try:
        from asg_bagel.modeling_flow import guided_network
        from asg_bagel.options import Sampler
        from asg_bagel.sampling import euler_steps, seeded_noise
    except ImportError:
        return [Row(name, "not run: asg_bagel is not installed")]
    backbone: Any = load_backbone("bagel", weights=checkpoint, device="cpu", dtype="float32")
    drawing, builder = backbone._drawing, backbone.builder
    side, sampler = builder.model.config.latent_side, Sampler(num_timesteps=9, interval=(0.0, 1.0))
    noise = torch.stack([seeded_noise(seed, side * side, builder.model.config.latent_width) for seed in range(8)])
    context = drawing._contexts(["a red bird on a green wall"])["a red bird on a green wall"]
    empty = type(context)()

    @torch.no_grad()
    def draw(branches: int) -> torch.Tensor:
        images = [context] * 8 if branches == 3 else None
        network = guided_network(builder, [context] * 8, [empty] * 8, images, side)
        return list(euler_steps(network, noise, sampler))[-1].result

    torch.testing.assert_close(draw(2), draw(3), rtol=1e-4, atol=1e-4)
    return [ratio(name, lambda: draw(2), lambda: draw(3), lambda: None, 1.25, 2 * repetitions)]


def saved_bytes(run: Callable[[], Any]) -> int:
    """Bytes of distinct storages that autograd keeps for the backward pass of what ``run`` computes."""
    seen: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        seen[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor.detach()  # the tensor itself would be a cycle that nothing collects

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = run()
    total = sum(storage.nbytes() for storage in seen.values())
    del result
    return total


def live_bytes() -> int:
    """Bytes of all tensors that are alive."""
    gc.collect()
    found = (o for o in gc.get_objects() if type(o) in (torch.Tensor, torch.nn.Parameter))
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in found}
    return sum(storages.values())


def memory() -> list[Row]:
    """Activations of the solver update against the unshared batch, and what is left after a step."""
    ours = Subject(QwenBackbone)
    rows = []
    for side, tokens in ((224, 64), (448, 256)):
        samples = [s for group in solver_groups(ours.sampled([picture(1, side)])).own for s, _ in group]
        alone = [
            TextSample(**{**vars(s), "request": type(s.request)(s.request.prompt, s.request.image.copy(), 0)})
            for s in samples
            if s.request.image is not None
        ]
        shared, unshared = (
            saved_bytes(lambda batch=batch: ours.backbone.token_logits(batch, Role.SOLVER, base=True))
            for batch in (samples, alone)
        )
        share = shared / unshared
        value = f"{share:.2f}x ({shared / 2**20:.1f} of {unshared / 2**20:.1f} MiB)"
        bar = "<= 0.65x" if tokens == 64 else ""
        rows.append(Row(f"saved activations of the solver update, {tokens} image tokens", value, bar, share <= 0.65))
        ours.reset()
    ours.step([picture(1, 224)])
    before = live_bytes()
    ours.step([picture(2, 224)])
    after = live_bytes()
    change = after / before - 1
    rows.append(
        Row("live tensor bytes after a step", f"{change:+.2%} of {before / 2**20:.1f} MiB", "±1 %", abs(change) <= 0.01)
    )
    return rows


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


def scaling(repetitions: int) -> list[Row]:
    """Time per image over images per step, time per candidate over candidates."""
    ours = Subject(QwenBackbone)
    rows = []
    for images in (1, 2, 4, 8):
        seconds = []
        for i in range(3):
            ours.reset()
            shown = [picture(100 * i + j, 224) for j in range(images)]
            seconds.append(timed(lambda shown=shown: ours.step(shown)))
        rows.append(
            Row(
                f"understanding step, {images} image(s) of 64 tokens",
                f"{1000 * statistics.median(seconds) / images:.0f} ms per image",
            )
        )
    flow = load_backbone("tiny_flow", device="cpu", dtype="float32")
    for candidates in (1, 2, 4, 8):
        requests = [ImageRequest("a red square above a blue circle", seed) for seed in range(candidates)]
        seconds = [
            timed(lambda requests=requests: flow.generate(requests, ImageSampling())) for _ in range(repetitions)
        ]
        rows.append(
            Row(
                f"drawing {candidates} candidate(s) (tiny_flow)",
                f"{1000 * statistics.median(seconds) / candidates:.1f} ms per candidate",
            )
        )
    return rows


def table(rows: Sequence[Row]) -> str:
    """Markdown."""
    lines = ["| what | median (spread) | bar | |", "|---|---|---|---|"]
    lines += [
        f"| {r.name} | {r.value} | {r.bar} | {('pass' if r.passed else 'MISSED') if r.bar else ''} |" for r in rows
    ]
    return "\n".join(lines)


def main() -> int:
    """Measure and print; exit code 1 if a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=5, help="pairs per ratio, at least 5 for a table to keep")
    parser.add_argument("--only", choices=("steps", "guidance", "memory", "overhead", "scaling"), nargs="+")
    parser.add_argument("--write", metavar="RUN", help="put the table into RESULTS.md under this name, e.g. 'run 1'")
    args = parser.parse_args()
    torch.set_num_threads(1)
    parts: dict[str, Callable[[], list[Row]]] = {
        "steps": lambda: step_ratios(args.repetitions),
        "guidance": lambda: guidance_ratio(args.repetitions),
        "memory": memory,
        "overhead": lambda: overhead(args.repetitions),
        "scaling": lambda: scaling(args.repetitions),
    }
    load = os.getloadavg()[0]
    rows: list[Row] = []
    for name in args.only or parts:
        rows += (found := parts[name]())
        print(table(found), flush=True)
    if args.write:
        note = f"{machine()}. Load average {load:.1f} at the start, {os.getloadavg()[0]:.1f} at the end."
        write_section(f"Ratios on a CPU, {args.write}", f"`{' '.join(['python', *sys.argv])}`, {note}\n\n{table(rows)}")
    return int(any(r.bar and not r.passed for r in rows))


if __name__ == "__main__":
    sys.exit(main())
