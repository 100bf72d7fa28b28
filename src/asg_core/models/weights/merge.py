"""What an export of merged weights reports; the merging itself is each plugin's, since layouts differ."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class ExportReport:
    """What was written.

    Attributes:
        directory: the new checkpoint in the model's released layout.
        merged: names of the tensors that have an adapter merged in.
        copied: number of tensors that are as they were.
    """

    directory: Path
    merged: tuple[str, ...]
    copied: int
