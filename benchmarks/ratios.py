"""What sharing, batching and capturing save, as ratios that survive a slow machine; RESULTS.md has the table.

    python benchmarks/ratios.py                    prints the table
    python benchmarks/ratios.py --write "run 1"    and puts it into RESULTS.md

An 8-layer Qwen2.5-VL with random weights takes the method's own step twice: through the core, and one request at a time
(``sequential.py``). Both are asserted to give the same numbers, then timed in turn, one thread, one process; a ratio is
the median over pairs of CPU times. Three runs of the whole script are the evidence; RESULTS.md keeps them.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from asg_core.backbones.interface import ImageRequest, ImageSampling, Role
from asg_core.backbones.loading import load_backbone
from asg_core.method.updates import Group, solver_groups
from asg_core.testing.qwen import QwenBackbone
from ratio_memory import memory
from ratio_overhead import overhead
from ratio_rows import Row, ratio, table, timed
from ratio_subject import Subject, picture
from results import machine, write_section
from sequential import SequentialQwen


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

        def update(subject: Subject, groups: list[Group] = groups) -> None:
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
        from asg_bagel.flow import guided_network
        from asg_bagel.sampling import euler_steps, seeded_noise
        from asg_bagel.settings import Sampler
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
