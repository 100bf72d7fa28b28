"""What a backbone may know of its own images beyond their pixels, for studies of the training signals.

Training never sees any of it: a manifest names the class, and nothing that trains resolves that name.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from PIL.Image import Image


@dataclass(frozen=True, eq=False)
class KnownQuestion:
    """A held-out question with its true answer; ``category`` is the kind of question."""

    image: Image
    question: str
    answer: str
    category: str


class KnownWorld(ABC):
    """The truth about images of one run.

    Args:
        seed: of the run; it fixes the training pool and the held-out questions.
    """

    @abstractmethod
    def __init__(self, seed: int) -> None: ...

    @abstractmethod
    def questions(self, count: int) -> list[KnownQuestion]:
        """``count`` held-out questions, never about images of the training pool; equal seeds give equal ones."""

    @abstractmethod
    def answer(self, source: str, question: str) -> str | None:
        """The true answer about the training image with the file name ``source``; None if the question has none."""

    @abstractmethod
    def answer_on(self, drawing: Image, question: str) -> str | None:
        """The true answer about a drawing of the model; None if the question has none."""

    @abstractmethod
    def shows(self, drawing: Image, prompt: str) -> bool | None:
        """Whether a drawing truly shows what ``prompt`` says; None if that cannot be told."""
