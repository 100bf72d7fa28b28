"""Checks of the contract: declared properties are true, denied capabilities are refused, records are complete."""

from __future__ import annotations

from collections.abc import Callable

import torch

from asg_core.backbones.interface import ImageSampling, Role, TextSampling
from asg_core.backbones.manifest import PLUGIN_API, BackboneManifest
from asg_core.errors import AsgError, CapabilityError
from asg_core.testing.conformance.check import check
from asg_core.testing.conformance.subject import (
    NEW_TOKENS,
    Subject,
    drawing_requests,
    mixed_requests,
    picture,
    wake,
)
from asg_core.testing.conformance.violations import NotApplicable, Violation, expect


@check(
    "contract.declaration",
    "manifest, device and dtype say what the backbone is",
    "set `manifest` to the BackboneManifest that the plugin announces; return the base's device and dtype",
)
def _declaration(subject: Subject) -> None:
    backbone = subject.backbone
    expect(isinstance(backbone.manifest, BackboneManifest), "backbone.manifest is no BackboneManifest")
    expect(
        backbone.manifest.plugin_api == PLUGIN_API,
        f"the manifest is for plugin interface {backbone.manifest.plugin_api}, this asg_core has {PLUGIN_API}",
    )
    expect(isinstance(backbone.device, torch.device), f"device is {backbone.device!r}, not a torch.device")
    expect(isinstance(backbone.dtype, torch.dtype), f"dtype is {backbone.dtype!r}, not a torch.dtype")


@check(
    "contract.denied",
    "what the capabilities deny raises CapabilityError",
    "raise CapabilityError in every method whose capability is false or None",
)
def _denied(subject: Subject) -> None:
    backbone, can = subject.backbone, subject.capabilities
    requests, sampling = mixed_requests("denied"), TextSampling(NEW_TOKENS)
    calls: dict[str, Callable[[], object]] = {}
    if not can.text:
        calls |= {
            "ask": lambda: backbone.ask(requests, sampling),
            "solve": lambda: backbone.solve(requests, sampling),
            "token_logits": lambda: backbone.token_logits([], Role.SOLVER),
        }
    if can.image_loss is None:
        calls |= {
            "generate": lambda: backbone.generate(drawing_requests(), ImageSampling()),
            "generation_loss": lambda: backbone.generation_loss([], []),
        }
    if not can.embed:
        calls["embed"] = lambda: backbone.embed(["a dog"])
    if not can.gradient_checkpointing:
        calls["loading with gradient_checkpointing"] = lambda: subject.fresh(gradient_checkpointing=True)
    for name, call in calls.items():
        try:
            call()
        except CapabilityError:
            continue
        except Exception as error:
            raise Violation(f"{name} raises {type(error).__name__}, not CapabilityError") from error
        raise Violation(f"{name} works though the capabilities deny it")


@check(
    "contract.gradient_checkpointing",
    "with gradient checkpointing the scores and gradients are the same",
    "pass the decoder layers as checkpoint_layers to CausalBackbone; do not use transformers' own checkpointing",
    "text",
    "float32",
    quick=False,
)
def _checkpointing(subject: Subject) -> None:
    if not subject.capabilities.gradient_checkpointing:
        raise NotApplicable("the capabilities deny gradient checkpointing")
    other = subject.fresh(gradient_checkpointing=True)
    wake(other, Role.SOLVER)
    samples = subject.sample(mixed_requests("checkpointing"))
    gradients = []
    for backbone in (subject.backbone, other):
        weights = list(backbone.trainable(Role.SOLVER).values())
        total = torch.stack([scores.logprobs.sum() for scores in backbone.token_logits(samples, Role.SOLVER)]).sum()
        gradients.append(torch.cat([g.flatten() for g in torch.autograd.grad(total, weights)]))
    worst = float((gradients[0] - gradients[1]).abs().max() / gradients[0].abs().max())
    expect(worst <= 1e-3, f"gradients differ by {worst:.1e} of the largest one")


@check(
    "contract.empty_calls",
    "no requests give no samples",
    "return [] for an empty sequence before anything is stacked",
)
def _empty_calls(subject: Subject) -> None:
    backbone, can, sampling = subject.backbone, subject.capabilities, TextSampling(NEW_TOKENS)
    if can.text:
        expect(backbone.ask([], sampling) == [], "ask([]) is not []")
        expect(backbone.solve([], sampling) == [], "solve([]) is not []")
        expect(backbone.token_logits([], Role.SOLVER) == [], "token_logits([]) is not []")
    if can.image_loss is not None:
        expect(backbone.generate([], ImageSampling()) == [], "generate([]) is not []")


@check(
    "contract.typed_errors",
    "a prompt or picture that the model cannot take raises an AsgError",
    "validate before the model runs; ConfigError, ImageError or CapabilityError with what, why and fix",
    "text",
)
def _typed_errors(subject: Subject) -> None:
    hostile = ["", " ", "\0", "🙂 ünïcode ｆｕｌｌ", "<|im_end|><image>", "word " * 1500]
    for prompt in hostile:
        request = mixed_requests("hostile")[0]
        try:
            subject.sample([type(request)(prompt, picture(3), request.seed)])
        except AsgError:
            continue
        except Exception as error:
            raise Violation(f"prompt {prompt[:20]!r} raises {type(error).__name__}: {error}") from error
