"""Gradient norms by released tensor name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from torch import nn

from asg_core.testing import ParityRun
from asg_vargpt.parity.setup import RELATIVE, Subject
from asg_vargpt.weights_map import released_names


@contextmanager
def gradients(subject: Subject, names: Sequence[str]) -> Iterator[dict[str, nn.Parameter]]:
    """Let the named released tensors collect gradients inside the block; everything is frozen again afterwards."""
    own = released_names(subject.model)
    parameters = {name: subject.model.get_parameter(own[name]) for name in names}
    for parameter in parameters.values():
        parameter.requires_grad_(True)
        parameter.grad = None
    try:
        yield parameters
    finally:
        for parameter in parameters.values():
            parameter.requires_grad_(False)
            parameter.grad = None


def compare_norms(run: ParityRun, name: str, expected: Mapping[str, float], own: Mapping[str, nn.Parameter]) -> None:
    """Compare Euclidean norms; a tensor without gradient has norm 0."""
    for tensor, norm in expected.items():
        gradient = own[tensor].grad
        actual = 0.0 if gradient is None else float(gradient.double().norm())
        run.close(f"{name} {tensor}", actual, norm, RELATIVE * max(abs(norm), 1e-3))
