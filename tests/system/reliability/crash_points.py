"""Places where a run can be killed: every write, rename and fsync below its folder, and every call of the model."""

from __future__ import annotations

import builtins
import functools
import io
import os
import random
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch

import asg_core.models.lora
import asg_core.runs.report.render
import asg_core.training.checkpoint
from asg_core.method.token_entropy import RollingPercentile
from asg_core.training.alarms import CollapseMonitor

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class Points:
    """Counts the points a run passes, and kills the process at one of them."""

    def __init__(self) -> None:
        self.labels: list[str] = []
        self.folder: str | None = None
        self.fatal = 0

    def here(self, label: str) -> bool:
        """Whether this is the point to die at; the caller may do half of what it was about to do before :meth:`die`."""
        if self.folder is None:
            return False
        self.labels.append(label)
        return len(self.labels) == self.fatal

    def pass_by(self, label: str) -> None:
        if self.here(label):
            self.die()

    def die(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def name(self, path: object) -> str | None:
        """``path`` relative to the run folder; None if it lies elsewhere. rmtree uses names relative to a directory."""
        text = os.fsdecode(path) if isinstance(path, str | bytes | os.PathLike) else None
        if self.folder is None or text is None:
            return None
        if not os.path.isabs(text):
            return text
        return os.path.relpath(text, self.folder) if text.startswith(self.folder) else None


POINTS = Points()


def instrument() -> None:
    """Make every write below the run folder, every call of the model and every optimizer step a point."""

    def audit(event: str, arguments: tuple[Any, ...]) -> None:
        writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & WRITING
        if writes or event in ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate"):
            name = POINTS.name(arguments[0])
            if name is not None:
                POINTS.pass_by(f"{event} {name}")

    sys.addaudithook(audit)
    real_open = io.open

    def open_torn(file: Any, mode: str = "r", *rest: Any, **options: Any) -> Any:
        handle = real_open(file, mode, *rest, **options)
        name = POINTS.name(file) if set(mode) & set("wax+") else None
        if name is None:
            return handle
        whole, first = handle.write, True

        def write(data: Any) -> Any:
            nonlocal first
            if first and POINTS.here(f"write {name}"):
                whole(data[: len(data) // 2])
                handle.flush()
                POINTS.die()
            first = False
            return whole(data)

        handle.write = write
        return handle

    builtins.open = io.open = open_torn  # type: ignore[assignment]

    os.fsync = fsync
    for module in (asg_core.training.checkpoint, asg_core.models.lora):
        module.save_file = torn_save  # type: ignore[attr-defined]
    asg_core.runs.report.render.draw_panels = lambda *_: []  # type: ignore[assignment]
    asg_core.runs.report.render._environment = BlankPages  # type: ignore[assignment]
    RollingPercentile.__init__.__defaults__ = (128, 1)  # so that the first values count
    torch.optim.AdamW.step = around("AdamW.step", torch.optim.AdamW.step)  # type: ignore[method-assign]
    CollapseMonitor.observe = around("observe", CollapseMonitor.observe)  # type: ignore[method-assign]


def fsync(descriptor: int) -> None:
    """One point for several in a row: nothing changes between them, and a killed process loses nothing it wrote."""
    if POINTS.labels[-1:] != ["fsync"]:
        POINTS.pass_by("fsync")


class BlankPages:
    """Renders nothing, quickly: how report.html is written is of interest here, not what is in it."""

    def get_template(self, name: str) -> BlankPages:
        return self

    def render(self, **context: Any) -> str:
        return "<html></html>"


def torn_save(tensors: dict[str, torch.Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    data = safetensors.torch.save(tensors, metadata)
    if POINTS.here(f"write {POINTS.name(path)}"):
        Path(path).write_bytes(data[: len(data) // 2])
        POINTS.die()
    safetensors.torch.save_file(tensors, path, metadata)


def called(label: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """One point in a call of the model, which also draws from the global generators, as a plugin may."""

    @functools.wraps(function)
    def wrapped(*arguments: Any, **options: Any) -> Any:
        torch.rand(1), np.random.rand(), random.random()  # noqa: NPY002
        result = function(*arguments, **options)
        POINTS.pass_by(f"in {label}")
        return result

    return wrapped


def around(label: str, function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapped(*arguments: Any, **options: Any) -> Any:
        POINTS.pass_by(f"before {label}")
        result = function(*arguments, **options)
        POINTS.pass_by(f"after {label}")
        return result

    return wrapped
