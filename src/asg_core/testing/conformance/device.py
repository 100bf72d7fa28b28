"""The check that a backbone would run on an accelerator, as far as that shows where there is none."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch

from asg_core.backbones.interface import Backbone, ImageSampling, Role, TextSampling
from asg_core.testing.conformance.check import check
from asg_core.testing.conformance.subject import (
    NEW_TOKENS,
    PROMPTS,
    Subject,
    drawing_requests,
    mixed_requests,
    picture,
    same_text,
    wake,
)
from asg_core.testing.conformance.violations import NotApplicable, Violation, expect, origin
from asg_core.testing.fake_device import fake_device, in_subprocess, obstacle


@check(
    "device.one",
    "on a device that is not the CPU (asg_core.testing.fake_device), no tensor of the CPU meets the model's",
    "make tensors with device=..., draw on the CPU and move (a seed is then the same everywhere), .cpu() before numpy",
    "float32",
    quick=False,
)
def _one(subject: Subject) -> None:
    if subject.backbone.device.type != "cpu":
        raise NotApplicable(f"the backbone is on {subject.backbone.device} already")
    if why := obstacle():
        raise NotApplicable(why)
    problem = in_subprocess(lambda: _problem(subject))
    expect(not problem, problem)


def _problem(subject: Subject) -> str:
    """What is wrong, "" for nothing."""
    try:
        with fake_device() as device:
            _exercise(subject, subject.factory(device=device), torch.device(device))
    except Violation as violation:
        return str(violation)
    except Exception as error:  # noqa: BLE001 - the code under test may raise anything
        return f"{type(error).__name__}: {' '.join(str(error).split())}, at {origin(error)}"
    return ""


def _exercise(subject: Subject, backbone: Backbone, device: torch.device) -> None:
    expect(backbone.device == device, f"backbone.device is {backbone.device}, not the {device} that was asked for")
    for role in subject.roles:
        wake(backbone, role)
    can = subject.capabilities
    if can.text:
        _text(subject, backbone)
    if can.image_loss is not None:
        drawn = backbone.generate(drawing_requests(), ImageSampling("rollout"))
        learned = backbone.generation_loss(drawn, list(range(len(drawn))))
        torch.autograd.backward(learned.loss.sum() + learned.penalty.sum())
        backbone.generate(drawing_requests(1), ImageSampling("rollout"), None)
    if can.embed:
        backbone.embed([*PROMPTS, picture(1)])
    for role in subject.roles:
        for name, weight in backbone.trainable(role).items():
            expect(weight.device == device, f"the {role}'s {name!r} is on {weight.device}")
        with tempfile.TemporaryDirectory() as folder:
            backbone.save_role(role, Path(folder))
            backbone.load_role(role, Path(folder))


def _text(subject: Subject, backbone: Backbone) -> None:
    requests, sampling = mixed_requests("far"), TextSampling(NEW_TOKENS)
    backbone.prefill([r.image for r in requests if r.image is not None], [Role.PROPOSER, Role.SOLVER, None])
    asked, solved = backbone.ask(requests, sampling), backbone.solve(requests, sampling)
    same_text("there against here", solved, subject.sample(requests), subject.tolerance)
    for role, samples in ((Role.PROPOSER, asked), (Role.SOLVER, solved)):
        scores = backbone.token_logits(samples, role, base=True, logits=True)
        torch.autograd.backward(torch.cat([score.logprobs for score in scores]).sum())
