"""Checks of the three adapters: what they are, how they switch, and that a step moves one of them alone."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from asg_core.backbones.interface import Backbone, ImageSampling, Role, TextRequest, TextSample, TextSampling
from asg_core.testing.conformance.check import check
from asg_core.testing.conformance.subject import (
    NEW_TOKENS,
    PROMPTS,
    Subject,
    close,
    drawing_requests,
    mixed_requests,
    picture,
    same_text,
    tensors_of,
)
from asg_core.testing.conformance.violations import expect


@check(
    "roles.trainables",
    "each role has float32 parameters that require gradients, by stable names, and shares none",
    "create adapters with asg_core.models.lora.RoleAdapters; return its parameters(role)",
)
def _trainables(subject: Subject) -> None:
    other, owners = subject.fresh(), dict[int, Role]()
    for role in subject.roles:
        weights = subject.backbone.trainable(role)
        expect(weights, f"the {role} has no parameters")
        expect(list(weights) == list(other.trainable(role)), f"the {role}'s names differ between two loads")
        for name, weight in weights.items():
            expect(weight is subject.backbone.trainable(role)[name], f"{role}: {name!r} is a new object on every call")
            expect(weight.dtype is torch.float32, f"{role}: {name!r} is {weight.dtype}, not float32")
            expect(weight.requires_grad, f"{role}: {name!r} does not require gradients")
            expect(id(weight) not in owners, f"{name!r} belongs to {owners.get(id(weight))} and {role}")
            owners[id(weight)] = role


@check(
    "roles.initialisation",
    "adapters start without effect and depend on the seed alone",
    "let lora_B start at zero; initialise from LoadRequest.seed, not from a global generator",
)
def _initialisation(subject: Subject) -> None:
    torch.manual_seed(1)
    first = subject.fresh(seed=1)
    torch.manual_seed(2)
    again, other = subject.fresh(seed=1), subject.fresh(seed=2)
    for role in subject.roles:
        one, two, three = (torch.cat([w.flatten() for w in b.trainable(role).values()]) for b in (first, again, other))
        expect(torch.equal(one, two), f"{role}: one seed gave two initialisations")
        expect(not torch.equal(one, three), f"{role}: two seeds gave the same initialisation")
    base, roles = outputs(first, None), [outputs(first, role) for role in (Role.PROPOSER, Role.SOLVER)]
    for role, values in zip((Role.PROPOSER, Role.SOLVER), roles, strict=True):
        _equal(f"a fresh {role} against the base", values, base)


@check(
    "roles.adapters_off",
    "role=None is the base model bit for bit, whatever the adapters hold",
    "bypass adapters instead of scaling them by zero; never merge them into the base",
)
def _adapters_off(subject: Subject) -> None:
    _equal("the base beside trained adapters", outputs(subject.backbone, None), outputs(subject.fresh(), None))


@check(
    "roles.switching",
    "switching from role A to B and back gives A's outputs bit for bit, and the roles differ",
    "clear or key every cache by the active adapter's version",
)
def _switching(subject: Subject) -> None:
    backbone = subject.backbone
    before = {role: outputs(backbone, role) for role in subject.roles}
    for role in reversed(subject.roles):
        _equal(f"{role} after other roles", outputs(backbone, role), before[role])
    if subject.capabilities.text:
        a, b = (before[role]["logprobs"] for role in (Role.PROPOSER, Role.SOLVER))
        expect(not torch.equal(a, b), "Proposer and Solver have different adapters but the same outputs")


@check(
    "roles.isolation",
    "an optimizer step of one role changes its own outputs and nothing else, bit for bit",
    "give the roles disjoint tensors; freeze the base; clear caches when an adapter changes",
)
def _isolation(subject: Subject) -> None:
    backbone, everyone = subject.backbone, (*subject.roles, None)
    before = {role: outputs(backbone, role) for role in everyone}
    for moved in subject.roles:
        weights = {role: _flat(backbone, role) for role in subject.roles}
        _step(backbone, moved)
        after = {role: outputs(backbone, role) for role in everyone}
        for role in everyone:
            if role is moved:
                changed = any(not torch.equal(v, before[role][k]) for k, v in after[role].items())
                expect(changed, f"a step of the {moved} does not change its outputs")
            else:
                _equal(f"{role or 'base'} after a step of the {moved}", after[role], before[role])
                if role is not None:
                    expect(torch.equal(_flat(backbone, role), weights[role]), f"a step of {moved} moved the {role}")
        before = after


@check(
    "roles.no_stale_cache",
    "after an update, calls on pictures seen before give what a newly loaded model with these weights gives",
    "key caches by adapter version as well as by image (RoleAdapters.version), or clear them when weights change",
)
def _no_stale_cache(subject: Subject) -> None:
    backbone, other = subject.backbone, subject.fresh()
    for role in subject.roles:
        outputs(backbone, role)
        _step(backbone, role)
        with torch.no_grad():
            for name, weight in backbone.trainable(role).items():
                other.trainable(role)[name].copy_(weight)
        updated = outputs(backbone, role)
        for key, wanted in outputs(other, role).items():
            allowed = subject.pixel_tolerance if "pixels" in key else subject.tolerance
            close(f"{role} after an update, {key}", updated[key], wanted, allowed)


@check(
    "roles.prefill",
    "pictures that were read ahead for several roles are seen by each role as if it had read them itself",
    "keep each role's rows under its own adapter version; a prefill that does nothing is right too",
    "text",
    "float32",
)
def _prefill(subject: Subject) -> None:
    backbone, roles = subject.backbone, (Role.SOLVER, None, Role.PROPOSER)

    def said(*, ahead: bool) -> list[list[TextSample]]:
        requests = [request for request in mixed_requests("prefill") if request.image is not None]
        if ahead:
            backbone.prefill([request.image for request in requests if request.image is not None], roles)
        return [backbone.solve(requests, TextSampling(NEW_TOKENS, 0.7), role) for role in roles]

    for role, got, wanted in zip(roles, said(ahead=True), said(ahead=False), strict=True):
        same_text(f"{role or 'base'} after a prefill", got, wanted, subject.tolerance)


def outputs(backbone: Backbone, role: Role | None) -> dict[str, Tensor]:
    """What the backbone computes under ``role``: log-probs of fixed tokens for text roles, drawings, embeddings."""
    can = backbone.manifest.capabilities
    found: dict[str, Tensor] = {}
    if can.text and role is not Role.GENERATOR:
        with torch.no_grad():
            scores = backbone.token_logits(_samples(backbone), role)
        found["logprobs"] = torch.cat([s.logprobs for s in scores]).cpu()
    if can.image_loss is not None and role in (Role.GENERATOR, None):
        for i, sample in enumerate(backbone.generate(drawing_requests()[:2], ImageSampling("rollout"), role)):
            found |= {f"drawing {i} {name}": tensor for name, tensor in tensors_of(sample)}
    if can.embed and role is None:
        found["embeddings"] = backbone.embed([PROMPTS[0], picture(1)]).cpu()
    return found


def _samples(backbone: Backbone) -> list[TextSample]:
    """What the base model says to a few requests: the same tokens for every role and at any time."""
    return backbone.solve(_requests(), TextSampling(3), None)


@cache
def _requests() -> list[TextRequest]:
    """The same picture objects every time, so that what is cached for a picture is used again."""
    return mixed_requests("outputs")[1:4]


def _step(backbone: Backbone, role: Role) -> None:
    optimizer = torch.optim.AdamW(backbone.trainable(role).values(), lr=1e-2)
    if role is Role.GENERATOR:
        samples = backbone.generate(drawing_requests()[:2], ImageSampling("rollout"))
        loss = backbone.generation_loss(samples, [1, 2]).loss.sum()
    else:
        loss = -torch.cat([s.logprobs for s in backbone.token_logits(_samples(backbone), role)]).sum()
    torch.autograd.backward(loss)
    optimizer.step()
    optimizer.zero_grad()


def _flat(backbone: Backbone, role: Role) -> Tensor:
    return torch.cat([weight.detach().flatten().clone() for weight in backbone.trainable(role).values()])


def _equal(name: str, got: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    for key in got.keys() & wanted.keys():
        expect(torch.equal(got[key], wanted[key]), f"{name}: {key} is not bit-identical")
