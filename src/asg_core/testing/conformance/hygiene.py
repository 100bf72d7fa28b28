"""Checks of what a call leaves behind."""

from __future__ import annotations

import gc
import random
from contextlib import suppress

import numpy as np
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from asg_core.backbones.interface import ImageSampling, Role, TextRequest, TextSampling
from asg_core.testing.conformance.check import check
from asg_core.testing.conformance.subject import NEW_TOKENS, PROMPTS, Subject, drawing_requests, picture
from asg_core.testing.conformance.violations import expect


@check(
    "hygiene.modes",
    "a call leaves train and eval mode, grad mode, default dtype, threads and requires_grad as they were",
    "use context managers (torch.no_grad(), RoleAdapters.use) instead of switches",
)
def _modes(subject: Subject) -> None:
    def state() -> tuple[object, ...]:
        wants = [w.requires_grad for role in subject.roles for w in subject.backbone.trainable(role).values()]
        model = subject.backbone.shardable()
        training = [module.training for module in model[0].modules()] if model else []
        modes = torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.get_default_dtype()
        return (*modes, tuple(wants), tuple(training))

    for enabled in (True, False):
        with torch.set_grad_enabled(enabled):
            before = (*state(), torch.get_num_threads())
            _round(subject, 1)
            expect((*state(), torch.get_num_threads()) == before, f"with grad mode {enabled}, a call changed a mode")


@check(
    "hygiene.global_generators",
    "no call draws from the global generators of torch, numpy or Python",
    "use generators of your own, seeded from the request; fork the generator around library code that draws",
)
def _generators(subject: Subject) -> None:
    torch_before, numpy_before, python_before = torch.get_rng_state(), _numpy_state(), random.getstate()
    _round(subject, 2)
    expect(torch.equal(torch.get_rng_state(), torch_before), "torch's global generator was drawn from")
    expect(_numpy_state() == numpy_before, "numpy's global generator was drawn from")
    expect(random.getstate() == python_before, "Python's global generator was drawn from")


@check(
    "hygiene.inputs",
    "pictures and trajectories that are handed over are not changed",
    "copy before you write",
)
def _inputs(subject: Subject) -> None:
    image = picture(6)
    before = np.asarray(image).copy()
    if subject.capabilities.text:
        subject.sample([TextRequest(PROMPTS[0], image, 1)])
    if subject.capabilities.embed:
        subject.backbone.embed([image])
    expect(np.array_equal(np.asarray(image), before), "the pixels of a request's picture changed")
    if subject.capabilities.image_loss is not None:
        samples = subject.draw(drawing_requests()[:1])
        kept = {name: tensor.clone() for name, tensor in samples[0].trajectory.items()}
        subject.backbone.generation_loss(samples, [1])
        changed = [name for name, tensor in samples[0].trajectory.items() if not torch.equal(tensor, kept[name])]
        expect(not changed, f"generation_loss changed the trajectory: {changed}")


@check(
    "hygiene.memory",
    "tensors of a call are gone when its samples and pictures are",
    "keep caches weak (by image object) or bounded; detach what you keep",
    quick=False,
)
def _memory(subject: Subject) -> None:
    for seed in (20, 21):  # what is built once and kept, is built by now
        _round(subject, seed)
    before = _live_bytes()
    for seed in range(22, 26):
        _round(subject, seed)
    grown = _live_bytes() - before
    expect(grown <= 0.01 * before, f"{grown / 2**20:.1f} MiB more are alive after four rounds of calls")


def _numpy_state() -> str:
    return str([np.asarray(part).tolist() for part in np.random.get_state(legacy=True)])  # noqa: NPY002


def _round(subject: Subject, seed: int) -> None:
    """Every call once, update included, on new pictures."""
    backbone, can = subject.backbone, subject.capabilities
    images = [picture(100 * seed + 1), picture(100 * seed + 2, 32, 48)]
    if can.text:
        requests = [TextRequest(prompt, image, seed) for image in images for prompt in PROMPTS]
        backbone.ask(requests, TextSampling(NEW_TOKENS))
        samples = backbone.solve(requests, TextSampling(NEW_TOKENS))
        _backward([s.logprobs for s in backbone.token_logits(samples, Role.SOLVER, base=True)])
    if can.image_loss is not None:
        drawn = backbone.generate(drawing_requests()[:2], ImageSampling("rollout"))
        _backward([backbone.generation_loss(drawn, [seed, seed]).loss])
    if can.embed:
        backbone.embed([*images, PROMPTS[0]])
    for role in subject.roles:
        for weight in backbone.trainable(role).values():
            weight.grad = None


def _backward(values: list[Tensor]) -> None:
    total = torch.cat(values).sum()
    if total.requires_grad:
        torch.autograd.backward(total)


def _live_bytes() -> int:
    gc.collect()
    storages = {}
    for found in gc.get_objects():
        # what torch.compile leaves is empty, and what wraps other tensors, which are counted, has no memory
        if issubclass(type(found), Tensor) and not issubclass(type(found), FakeTensor):
            with suppress(RuntimeError):
                if found.layout is torch.strided and not found.is_meta:
                    storages[found.untyped_storage().data_ptr()] = found.untyped_storage().nbytes()
    return sum(storages.values())
