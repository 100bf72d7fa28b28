"""The order of measurements: by worth, each round over all backbones before the next, so that time runs out last."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial

import torch

from gpu_bench import Bench
from gpu_models import build
from gpu_parts import capturing, decode, decode_captured, decode_compiled, fixed_shapes, images, prefill, replay
from gpu_precision import precision
from gpu_report import accelerator_of
from gpu_rows import GIB, Deadline, Row, Section, release_memory, run_section
from gpu_steps import Step, sequential, step
from gpu_watch import kernels, syncs

COMPILING = 90.0
"""Seconds that it takes to compile and measure decode passes: about 70 for BLIP3o beside an H200, with room."""

ROOM = 60 * GIB
"""Bytes beside all weights that a device must have for models to stay on it between rounds."""


def rounds(many: int) -> tuple[tuple[str, ...], ...]:
    """Section names, most worth knowing first; ``many`` images in the large steps."""
    return (
        ("precision", "replay", "prefill", "decode", "image", "understanding step", "generation step", "syncs"),
        ("decode captured", "long understanding step", "long understanding step captured"),
        (f"understanding step x{many}", f"long understanding step x{many}", f"generation step x{many}"),
        ("profile", "sequential understanding step", "sequential generation step"),
        ("decode compiled",),
    )


def sections_of(bench: Bench) -> dict[str, Section]:
    """What can be measured of a model, by name."""
    many, short, long = bench.many, bench.short, bench.long
    once = {
        "replay": replay,
        "prefill": prefill,
        "decode": decode,
        "image": images,
        "syncs": syncs,
        "decode captured": decode_captured,
        "profile": kernels,
    }
    steps = (
        (Step("understanding step", "understanding", 1, short), bench.times(120, "decode pass")),
        (Step("generation step", "generation", 1, short), bench.times(3, "rollout image")),
        (Step("long understanding step", "understanding", 1, long), bench.times(300, "decode pass")),
        (Step(f"understanding step x{many}", "understanding", many, short), bench.times(2, "understanding step")),
        (
            Step(f"long understanding step x{many}", "understanding", many, long),
            bench.times(4, "long understanding step"),
        ),
        (Step(f"generation step x{many}", "generation", many, short), bench.times(many / 1.5, "generation step")),
    )
    captured = Step("long understanding step captured", "understanding", 1, long, "captured")

    def run_captured() -> Iterator[Row]:
        with fixed_shapes(bench, capturing(bench)):
            yield from step(bench, captured)

    found = [
        *(Section(name, partial(run, bench)) for name, run in once.items()),
        *(Section(what.section, partial(step, bench, what), expected) for what, expected in steps),
        Section(captured.section, run_captured, bench.times(1, "long understanding step")),
        Section(
            "sequential understanding step",
            partial(sequential, bench, "understanding"),
            bench.times(5, "understanding step"),
        ),
        Section(
            "sequential generation step", partial(sequential, bench, "generation"), bench.times(3, "generation step")
        ),
        Section("decode compiled", partial(decode_compiled, bench), lambda: 0.0 if bench.tiny else COMPILING),
    ]
    return {section.name: section for section in found}


@dataclass
class Shelf:
    """The models of a run: all of them on the device where they fit with room to work, else one at a time.

    Args:
        device, tiny, dtype: of the models.
        rates_of: name of the device whose rates count, or None.
        deadline: of the whole run.
        save: given a backbone's name and each of its rows.
    """

    device: torch.device
    tiny: bool
    dtype: str
    rates_of: str | None
    deadline: Deadline
    save: Callable[[str, Row], None]
    _kept: dict[str, tuple[Bench, int]] = field(default_factory=dict)
    _took: dict[str, dict[str, float]] = field(default_factory=dict)

    def measure(self, name: str, wanted: tuple[str, ...]) -> None:
        """The sections of one backbone that are ``wanted``, in that order."""
        save = partial(self.save, name)
        if "precision" in wanted:
            check = Section("precision", lambda: precision(name, self.tiny, str(self.device), self.dtype))
            run_section(check, self.deadline, self.device, save)
        rest = [section for section in wanted if section != "precision"]
        if rest and name not in self._kept and self.deadline.left > 0:
            self._make_room()
            run_section(Section("build", partial(self._build, name)), self.deadline, self.device, save)
        if name not in self._kept:
            for section in rest:
                save(Row(section, status="not run", note="out of time, or the model was not built"))
            return
        bench, _ = self._kept[name]
        bench.others = sum(weight for other, (_, weight) in self._kept.items() if other != name)
        known = sections_of(bench)
        for section in rest:
            run_section(known[section], self.deadline, self.device, save, bench.others)

    def _make_room(self) -> None:
        if self.device.type != "cuda":
            return
        held = sum(weight for _, weight in self._kept.values())
        largest = max((weight for _, weight in self._kept.values()), default=0)
        if torch.cuda.get_device_properties(self.device).total_memory < held + 1.5 * largest + ROOM:
            self._kept.clear()
            release_memory(self.device)

    def _build(self, name: str) -> Iterator[Row]:
        start, before = time.perf_counter(), self._allocated()
        built = build(name, "tiny" if self.tiny else "full", str(self.device), self.dtype, checkpointing=True)
        took = self._took.setdefault(name, {})
        bench = Bench(name, built, self.device, accelerator_of(self.device, self.rates_of), self.tiny, took=took)
        self._kept[name] = bench, self._allocated() - before
        count, planned = built.shape.parameters, built.shape.weight_bytes + 4 * sum(built.shape.adapters.values())
        yield Row(
            "build",
            "model",
            time.perf_counter() - start,
            "s",
            planned_gib=planned / GIB,
            note=f"{count:,} parameters, random weights; {(self._allocated() - before) / GIB:.2f} GiB on the device",
        )

    def _allocated(self) -> int:
        return torch.cuda.memory_allocated(self.device) if self.device.type == "cuda" else 0
