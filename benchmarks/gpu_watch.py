"""What a device is made to wait for: host synchronisations by line of code, and the kernels that take longest."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from asg_core.backbones.interface import ImageRequest, ImageSampling, TextRequest, TextSampling
from asg_core.method.prompts import QUESTION_PROMPT
from gpu_bench import Bench
from gpu_models import pictures
from gpu_rows import Row
from scripted_step import UPDATED, require_updates, scripted_step

LONGEST = 15
"""Kernels of a profile that are listed."""

PASSES = 3
"""Decode passes of a profile."""


@contextmanager
def watched(device: torch.device) -> Iterator[Counter[str]]:
    """Counts synchronisations inside by "file:line"; nothing on a CPU."""
    found: Counter[str] = Counter()
    if device.type != "cuda":
        yield found
        return
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield found
        finally:
            torch.cuda.set_sync_debug_mode(before)
    for warning in caught:
        if "synchronizing CUDA operation" in str(warning.message):
            found["/".join(warning.filename.split("/")[-2:]) + f":{warning.lineno}"] += 1


def _row(name: str, found: Counter[str], per: float) -> Row:
    lines = ", ".join(f"{count}x {line}" for line, count in found.most_common(4))
    return Row("syncs", name, found.total() / per, "syncs", note=lines)


def syncs(bench: Bench) -> Iterator[Row]:
    """Of a decode pass, a network call of drawing, and the update of each role."""
    picture = pictures(1, bench.built.side)[0]
    request = TextRequest(QUESTION_PROMPT, picture, 0)
    short, long = 2, 6
    counts = {}
    for length in (short, long):
        bench.backbone.solve([request], TextSampling(length))
        with watched(bench.device) as counts[length]:
            bench.backbone.solve([request], TextSampling(length))
    counts[long].subtract(counts[short])
    yield _row("a decode pass", +counts[long], long - short)
    with watched(bench.device) as found:
        bench.backbone.prefill(pictures(1, bench.built.side), [None])
    yield _row("an image read", found, 1)
    calls = sum(stage.calls for stage in bench.built.drawings["rollout"].stages)
    with watched(bench.device) as found:
        bench.backbone.generate([ImageRequest("a red square", 1)], ImageSampling("rollout"))
    yield _row("a network call of drawing", found, calls)
    for kind, roles in UPDATED.items():
        updates: Counter[str] = Counter()

        @contextmanager
        def watch(part: str, updates: Counter[str] = updates) -> Iterator[None]:
            with watched(bench.device) as found:
                yield
            updates.update(found if part.startswith("update") else {})

        images, config = pictures(1, bench.short.side), bench.config(kind, 1, bench.short)
        model, floors = bench.backbone, bench.floors
        require_updates(scripted_step(model, kind, images, config, bench.optimizer, floors=floors, watch=watch))
        yield _row(f"an update, {kind} step", updates, len(roles))


def kernels(bench: Bench) -> Iterator[Row]:
    """The longest kernels of a prompt and three decode passes of eight rows, and how many there are in all."""
    picture = pictures(1, bench.built.side)[0]
    requests = [TextRequest(QUESTION_PROMPT, picture, seed) for seed in range(8)]
    sampling = TextSampling(PASSES + 1)
    bench.backbone.solve(requests, sampling)
    if bench.device.type != "cuda":
        yield Row("profile", status="not run", note="needs a CUDA device")
        return
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
        bench.backbone.solve(requests, sampling)
        torch.cuda.synchronize(bench.device)
    found = [event for event in seen.key_averages() if event.device_type == DeviceType.CUDA]
    found.sort(key=lambda event: event.self_device_time_total, reverse=True)
    busy = sum(event.self_device_time_total for event in found) / 1e3
    launched = sum(event.count for event in found)
    yield Row("profile", "device busy", busy, "ms", note=f"{launched} kernels, a prompt and {PASSES} passes of 8 rows")
    for event in found[:LONGEST]:
        yield Row("profile", event.key[:60], event.self_device_time_total / 1e3, "ms", note=f"{event.count} times")
