"""What a person sees while training runs: a live table on a terminal, one plain line per step anywhere else.

Plain lines hold no control characters whatever a file name or a model puts into them, so logs stay readable.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from statistics import fmean
from typing import Any, TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn
from rich.table import Column, Table
from rich.text import Text

from asg_core.runs.folder import number

_ROLES = ("proposer", "solver", "generator")
_TIMED_STEPS = 20


class TrainingDisplay:
    """Progress of a run. Missing and null metrics are left out; the terminal is restored when the block is left.

    Args:
        total_steps: steps of the whole run, >= 0.
        stream: where to write, stderr if None.
        interactive: True forces the live table, False plain lines, None asks the stream whether it is a terminal.
    """

    def __init__(self, total_steps: int, *, stream: TextIO | None = None, interactive: bool | None = None) -> None:
        self.total_steps = total_steps
        self._stream = sys.stderr if stream is None else stream
        self._console = Console(file=self._stream, force_terminal=interactive, highlight=False, markup=False)
        self._interactive = self._console.is_terminal and not self._console.is_dumb_terminal
        self._done = 0
        self._latest: dict[str, float] = {}
        self._seconds: deque[float] = deque(maxlen=_TIMED_STEPS)
        self._progress = Progress(
            TextColumn("{task.description}", markup=False), BarColumn(), TaskProgressColumn(),
            TextColumn("{task.fields[note]}", markup=False), console=self._console,
        )  # fmt: skip
        self._live = Live(console=self._console, get_renderable=self._render, refresh_per_second=4)
        self._training = self._progress.add_task(self._position(), total=total_steps, note="")

    def __enter__(self) -> TrainingDisplay:
        if self._interactive:
            self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._live.stop()

    def message(self, text: str) -> None:
        """Say something that stays on screen; line breaks are kept, other control characters are not."""
        if self._interactive:
            self._console.print(Text(_printable(text)), soft_wrap=True)
        else:
            self._line(text)

    def step(self, metrics: Mapping[str, Any]) -> None:
        """Show one finished step; ``metrics`` is its record in metrics.jsonl."""
        numbers = {key: found for key, value in metrics.items() if (found := number(value)) is not None}
        self._latest |= numbers
        self._done = int(numbers.get("step", self._done + 1))
        if "seconds" in numbers:
            self._seconds.append(numbers["seconds"])
        took = f"{numbers['seconds']:.1f} s" if "seconds" in numbers else ""
        position, times = self._position(), [part for part in (took, self._left()) if part]
        if self._interactive:
            self._progress.update(self._training, description=position, completed=self._done, note="  ".join(times))
        else:
            head = f"{position} {metrics.get('kind') or ''}".rstrip()
            self._line("  ".join([head, *_summary(numbers), *times]))

    @contextmanager
    def task(self, name: str) -> Iterator[Callable[[int, int], None]]:
        """Progress of something beside the steps; the result is called with (done, total) amounts of work."""
        if self._interactive:
            row = self._progress.add_task(_printable(name), total=None, note="")
            try:
                yield lambda done, total: self._progress.update(row, completed=done, total=total)
            finally:
                self._progress.remove_task(row)
            return
        self._line(name)
        quarters = 0

        def report(done: int, total: int) -> None:
            nonlocal quarters
            reached = min(4, 4 * done // total) if total > 0 else 0
            if reached > quarters:
                quarters = reached
                self._line(f"{name}: {25 * reached} %")

        yield report

    def _line(self, text: str) -> None:
        encoding = self._console.encoding
        plain = _printable(text).encode(encoding, "backslashreplace").decode(encoding)
        self._stream.write(plain + "\n")
        self._stream.flush()

    def _position(self) -> str:
        width = len(str(self.total_steps))
        return f"step {self._done:{width}d}/{self.total_steps}"

    def _left(self) -> str:
        if not self._seconds:
            return ""
        seconds = max(0, self.total_steps - self._done) * fmean(self._seconds)
        return f"left {timedelta(seconds=round(seconds))}"

    def _render(self) -> Group:
        if not self._latest:
            return Group(self._progress)
        columns = [Column(title, justify="right") for title in ("reward", "KL", "beta", "grad norm")]
        table = Table("", *columns, box=None, padding=(0, 2, 0, 0), header_style="dim")
        for role in _ROLES:
            table.add_row(role, *(self._cell(f"{stem}_{role}", form) for stem, form in _TABLE.items()))
        signals = [f"{title} {self._cell(key, '.3f')}" for key, title in _SIGNALS.items()]
        return Group(table, Text("   ".join(signals), overflow="ellipsis", no_wrap=True), self._progress)

    def _cell(self, key: str, form: str) -> str:
        return f"{self._latest[key]:{form}}" if key in self._latest else "-"


_TABLE = {"reward": "+.3f", "kl": ".2g", "beta": ".2g", "grad_norm": ".3f"}
_SIGNALS = {"h_sc": "H_sc", "ste_raw": "STE", "majority_share": "majority", "s_fid": "S_fid", "s_cyc": "S_cyc"}


def _summary(numbers: Mapping[str, float]) -> Iterator[str]:
    for stem, title, form in (("reward", "reward", "+.3f"), ("kl", "KL", ".2g")):
        values = [f"{role} {numbers[f'{stem}_{role}']:{form}}" for role in _ROLES if f"{stem}_{role}" in numbers]
        if values:
            yield f"{title} {' '.join(values)}"
    for key, title in _SIGNALS.items():
        if key in numbers and key != "majority_share":
            yield f"{title} {numbers[key]:.3f}"
    if numbers.get("questions", 0) > 0 and numbers.get("gate_failures") == numbers["questions"]:
        yield "no completion is a question"
    if numbers.get("skipped", 0) > 0 and numbers.get("specs") == 0:
        yield "no image got a usable spec"
    if numbers.get("nonfinite"):
        yield f"{numbers['nonfinite']:.0f} non-finite dropped"


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() or c == "\n" else " " if c == "\t" else "?" for c in text)
