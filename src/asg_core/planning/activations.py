"""Bytes that a differentiated pass needs beside weights, gradients of weights, and caches."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Activations:
    """Of a pass with gradients, its backward pass, and the same pass without gradients while the first one is kept.

    Attributes:
        saved: for the backward pass by all layers, if none is run again.
        inputs: what is left of that where layers are run again (gradient checkpointing): mostly their inputs.
        layer: saved by the largest layer that is run again.
        backward: gradients and casts beside what is saved, at the largest moment.
        forward: of a pass without gradients, at its largest moment.
    """

    saved: int
    inputs: int
    layer: int
    backward: int
    forward: int

    def __add__(self, other: Activations) -> Activations:
        """Of a pass through one part of a model and then another."""
        return Activations(
            self.saved + other.saved,
            self.inputs + other.inputs,
            max(self.layer, other.layer),
            max(self.backward, other.backward),
            max(self.forward, other.forward),
        )

    def __mul__(self, samples: int) -> Activations:
        """Of that many equal samples side by side."""
        return Activations(*(samples * value for value in vars(self).values()))

    def kept(self, checkpointing: bool) -> int:
        """From the forward to the backward pass."""
        return self.inputs if checkpointing else self.saved

    def returning(self, checkpointing: bool) -> int:
        """Beside what is kept, in the backward pass."""
        return self.backward + (self.layer if checkpointing else 0)

    def passing(self, checkpointing: bool) -> int:
        """Beside what is kept: while the base policy scores what the role has scored, or in the backward pass."""
        return max(self.forward, self.returning(checkpointing))
