"""Checks of ``token_logits``: equal to sampling, batch by batch, and with the right gradient."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from asg_core.backbones.interface import Role, TextSample
from asg_core.testing.conformance.check import check
from asg_core.testing.conformance.subject import Subject, close, mixed_requests
from asg_core.testing.conformance.violations import expect

SLOPE_ERROR = 0.01
"""Largest relative error of a gradient against finite differences in float32."""


@check(
    "scoring.replay",
    "replayed log-probs and entropies equal the sampled ones, at every temperature and greedy, for every role",
    "score under the request's own prompt and picture; labels are the next tokens; same temperature, same suppression",
    "text",
)
def _replay(subject: Subject) -> None:
    for role in (Role.PROPOSER, Role.SOLVER, None):
        for temperature in (1.0, 0.6, 0.0):
            samples = subject.sample(mixed_requests("replay"), role=role, temperature=temperature)
            for i, (sample, scores) in enumerate(zip(samples, subject.score(samples, role), strict=True)):
                where = f"{role or 'base'}, temperature {temperature}, sample {i}"
                close(f"{where}: log-probs", scores.logprobs, sample.logprobs, subject.tolerance)
                close(f"{where}: entropies", scores.entropies, sample.entropies, 3 * subject.tolerance)


@check(
    "scoring.labels",
    "the log-prob of a token is that of softmax(logits / temperature) in the row that predicts it",
    "row t of the logits is computed from the tokens before token t; suppressed tokens can only raise a log-prob",
    "text",
)
def _labels(subject: Subject) -> None:
    samples = subject.sample(mixed_requests("labels"), temperature=0.8)
    for i, (sample, scores) in enumerate(zip(samples, subject.score(samples, logits=True), strict=True)):
        if scores.logits is None:
            expect(False, "token_logits(logits=True) gives no logits")
            return
        expect(len(scores.logits) == len(sample.token_ids), f"sample {i}: not one row of logits a token")
        ids = torch.tensor(sample.token_ids, device=scores.logits.device)
        plain = torch.log_softmax(scores.logits.double() / 0.8, -1).gather(-1, ids[:, None])[:, 0]
        gain = (torch.tensor(sample.logprobs, dtype=torch.float64) - plain.cpu()).clamp(max=0)
        close(f"sample {i}: log-probs below those of the logits", gain, torch.zeros_like(gain), subject.tolerance)


@check(
    "scoring.batch",
    "a stored sample scores the same alone and in a batch",
    "check padding, mask and positions of completions and prompts of different lengths",
    "text",
)
def _batch(subject: Subject) -> None:
    samples = _ragged(subject.sample(mixed_requests("scoring")))
    for i, (sample, scores) in enumerate(zip(samples, subject.score(samples), strict=True)):
        alone = subject.score([sample])[0]
        close(f"sample {i} in a batch against alone", scores.logprobs, alone.logprobs, subject.tolerance)


@check(
    "scoring.base",
    "base log-probs are those with adapters off; KL is 0 for a fresh adapter and positive for a trained one",
    "run the base pass with all adapters off; KL is over the whole vocabulary at the sample's temperature",
    "text",
)
def _base(subject: Subject) -> None:
    samples = subject.sample(mixed_requests("base"), temperature=0.9)
    scored, plain = subject.score(samples, base=True), subject.score(samples, None)
    total = 0.0
    for i, (scores, base) in enumerate(zip(scored, plain, strict=True)):
        if scores.base_logprobs is None or scores.kl is None:
            expect(False, "token_logits(base=True) gives no base_logprobs or kl")
            return
        close(f"sample {i}: base log-probs", scores.base_logprobs, base.logprobs, subject.tolerance)
        expect(bool((scores.kl >= -subject.tolerance).all()), f"sample {i}: a KL is negative or NaN")
        total += float(scores.kl.sum())
    expect(total > 0, "an adapter that changes the log-probs has no KL to the base")
    for i, scores in enumerate(subject.score(samples, None, base=True)):
        if scores.kl is not None:
            expect(bool((scores.kl.abs() <= 1e-6).all()), f"sample {i}: the base has a KL to itself")


@check(
    "scoring.gradient",
    "the gradient of log-probs and KL is the true one (finite differences), through prompt and picture too",
    "do not detach or no_grad the shared prefix; keep adapters active in the backward pass of checkpointed layers",
    "text",
    "float32",
)
def _gradient(subject: Subject) -> None:
    samples = _ragged(subject.sample(mixed_requests("gradient")))
    for role in (Role.PROPOSER, Role.SOLVER):
        check_slopes(role.value, subject.backbone.trainable(role), lambda: _objective(subject, samples, role))  # noqa: B023


@check(
    "scoring.all_adapters_learn",
    "every adapter tensor of a text role gets a gradient, and those of the other roles get none",
    "call adapted layers as modules, not their weights; switch adapters without touching requires_grad",
    "text",
)
def _learn(subject: Subject) -> None:
    samples = subject.sample(mixed_requests("learn"))
    for role in (Role.PROPOSER, Role.SOLVER):
        torch.autograd.backward(_objective(subject, samples, role))
        check_gradients(subject, role)


def check_gradients(subject: Subject, role: Role) -> None:
    """Raise Violation unless exactly the tensors of ``role`` have a finite, non-zero ``grad``; clears them."""
    inert = [n for n, w in subject.backbone.trainable(role).items() if w.grad is None or not w.grad.any()]
    expect(not inert, f"{role}: {len(inert)} adapter tensors get no gradient, the first {inert[:1]}")
    broken = [n for n, w in subject.backbone.trainable(role).items() if w.grad is None or not w.grad.isfinite().all()]
    expect(not broken, f"{role}: gradients are not finite, the first {broken[:1]}")
    for other in subject.roles:
        if other is not role:
            leaks = [n for n, w in subject.backbone.trainable(other).items() if w.grad is not None and w.grad.any()]
            expect(not leaks, f"a loss of the {role} puts gradients on the {other}: {leaks[:1]}")
    for weight in subject.backbone.trainable(role).values():
        weight.grad = None


def check_slopes(name: str, weights: Mapping[str, nn.Parameter], objective: Callable[[], Tensor]) -> None:
    """Raise Violation unless the gradient of ``objective`` agrees with central finite differences.

    The directions scale every adapter tensor up or down by random signs: they are correlated with what an adapter does
    and not with the gradient itself, so a gradient that lacks a part of the path is seen.
    """
    parameters = list(weights.values())
    gradients = torch.autograd.grad(objective(), parameters, allow_unused=True)
    starts = [p.detach().clone() for p in parameters]
    step, told, found = 0.005, [], []
    for direction in range(4):
        stream = torch.Generator().manual_seed(direction)
        signs = [1.0 if direction == 0 else float(torch.randint(2, (), generator=stream)) * 2 - 1 for _ in starts]
        told.append(
            sum(
                s * float((g.double() * w.double()).sum())
                for s, g, w in zip(signs, gradients, starts, strict=True)
                if g is not None
            )
        )
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                for parameter, start, s in zip(parameters, starts, signs, strict=True):
                    parameter.copy_(start * (1 + sign * step * s))
                values.append(float(objective()))
        found.append((values[0] - values[1]) / (2 * step))
    with torch.no_grad():
        for parameter, start in zip(parameters, starts, strict=True):
            parameter.copy_(start)
    a, b = torch.tensor(told, dtype=torch.float64), torch.tensor(found, dtype=torch.float64)
    expect(bool(b.abs().max() > 0), f"{name}: the adapters have no effect")
    error = float((a - b).norm() / b.norm())
    expect(error <= SLOPE_ERROR, f"{name}: the gradient is {100 * error:.1f} % off the finite differences")


def _ragged(samples: list[TextSample]) -> list[TextSample]:
    """The beginnings of ``samples``, of different lengths."""
    cut = []
    for i, sample in enumerate(samples):
        keep = 1 + (len(sample.token_ids) - 1 - i) % len(sample.token_ids)
        parts = {n: getattr(sample, n)[:keep] for n in ("token_ids", "pieces", "logprobs", "entropies")}
        cut.append(replace(sample, text="".join(parts["pieces"]), finish_reason="length", **parts))
    return cut


def _objective(subject: Subject, samples: list[TextSample], role: Role) -> Tensor:
    total = torch.zeros((), device=subject.backbone.device)
    for scores in subject.backbone.token_logits(samples, role, base=True):
        total = total + scores.logprobs.sum()
        if scores.kl is not None:
            total = total + scores.kl.sum()
    return total
