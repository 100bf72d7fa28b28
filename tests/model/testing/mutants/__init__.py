"""Backbones that are broken on purpose. A mutant lies in the file that is called as the kit's module of its check."""

from __future__ import annotations

from . import contract, device, drawing, embedding, hygiene, imports, roles, scoring, state, text
from .registry import MUTANTS

__all__ = [
    "MUTANTS",
    "contract",
    "device",
    "drawing",
    "embedding",
    "hygiene",
    "imports",
    "roles",
    "scoring",
    "state",
    "text",
]
