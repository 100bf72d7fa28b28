"""Checks of ``generate`` and ``generation_loss``."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from asg_core.backbones.interface import ImageRequest, ImageSample, ImageSampling, Role
from asg_core.errors import AsgError
from asg_core.testing.conformance.check import check
from asg_core.testing.conformance.scoring import check_gradients, check_slopes
from asg_core.testing.conformance.subject import Subject, close, drawing_requests, tensors_of
from asg_core.testing.conformance.violations import NotApplicable, Violation, expect


@check(
    "drawing.images",
    "every request gives one RGB image of the declared size, with its trajectory on the CPU",
    "convert to RGB; one size per profile; move trajectory tensors to the CPU",
    "drawing",
)
def _images(subject: Subject) -> None:
    requests = drawing_requests()
    for profile in ("rollout", "quality"):
        samples = subject.backbone.generate(requests, ImageSampling(profile))
        expect([s.request for s in samples] == requests, f"{profile}: not one sample per request, in order")
        sizes = {sample.image.size for sample in samples}
        expect(len(sizes) == 1, f"{profile}: one batch has images of sizes {sorted(sizes)}")
        if subject.image_size is not None and profile == "rollout":
            expect(sizes == {subject.image_size}, f"images are {sizes.pop()}, declared are {subject.image_size}")
        for sample in samples:
            expect(sample.image.mode == "RGB", f"{profile}: an image is {sample.image.mode}, not RGB")
            expect(sample.trajectory, f"{profile}: the trajectory is empty")
            for name, tensor in sample.trajectory.items():
                expect(tensor.device.type == "cpu", f"{profile}: trajectory tensor {name!r} is on {tensor.device}")


@check(
    "drawing.seeds",
    "a drawing depends on its prompt and seed: not on the batch, its order, or a global generator",
    "draw all noise from torch.Generator().manual_seed(request.seed), one for each request",
    "drawing",
)
def _seeds(subject: Subject) -> None:
    requests = drawing_requests()
    torch.manual_seed(1)
    together = subject.draw(requests)
    torch.manual_seed(2)
    _same_drawings("again, other global seed", subject.draw(requests), together, subject)
    expect(_differ(together[-2], together[-1]), "two seeds of one prompt give the same drawing")
    if subject.backbone.dtype is not torch.float32:
        return  # another batch rounds otherwise, which guidance and a token near its border amplify
    _same_drawings("in reverse order", subject.draw(requests[::-1])[::-1], together, subject)
    _same_drawings("alone", [subject.draw([request])[0] for request in requests], together, subject)


@check(
    "drawing.reads_the_prompt",
    "what is drawn depends on the prompt",
    "check that the prompt's hidden states condition the sampler",
    "drawing",
)
def _prompt(subject: Subject) -> None:
    first, second = (ImageRequest(prompt, 3) for prompt in ("a red circle", "two cats on a green sofa"))
    a, b = subject.draw([first, second])
    expect(_differ(a, b), "two prompts with one seed give the same drawing")


@check(
    "drawing.adapter",
    "the Generator's adapter changes what is drawn, and a text role's does not",
    "call adapted layers as modules inside the sampler; switch to the Generator's adapter for the whole drawing",
    "drawing",
)
def _adapter(subject: Subject) -> None:
    requests = drawing_requests()[:2]
    trained, base = subject.draw(requests), subject.draw(requests, role=None)
    expect(any(_differ(a, b) for a, b in zip(trained, base, strict=True)), "the Generator draws as the base does")
    fresh = subject.fresh().generate(requests, ImageSampling("rollout"), None)
    _same_drawings("the base beside trained adapters", base, fresh, subject)


@check(
    "drawing.without_guidance",
    "drawing works with guidance switched off",
    "handle a guidance scale of 1 (or 0, as the model counts) without the unconditional branch",
    "drawing",
)
def _without_guidance(subject: Subject) -> None:
    if subject.guidance_off is None:
        raise NotApplicable("say how it is switched off: guidance_off in the test class, --guidance-off for asg check")
    backbone = subject.fresh(options=subject.guidance_off)
    for sample in backbone.generate(drawing_requests(), ImageSampling("rollout"), None):
        for name, tensor in tensors_of(sample):
            expect(tensor.double().isfinite().all(), f"{name} is not finite")


@check(
    "drawing.trajectory",
    "a trajectory goes through safetensors and gives exactly the same loss",
    "keep everything that generation_loss needs in the trajectory, in a dtype that files keep",
    "drawing",
)
def _trajectory(subject: Subject) -> None:
    samples = subject.draw(drawing_requests())
    with tempfile.TemporaryDirectory() as folder:
        restored = []
        for i, sample in enumerate(samples):
            file = Path(folder) / f"{i}.safetensors"
            save_file({name: tensor.contiguous() for name, tensor in sample.trajectory.items()}, file)
            restored.append(replace(sample, trajectory=load_file(file)))
    with torch.no_grad():
        before, after = (subject.backbone.generation_loss(s, [5] * len(s)).loss for s in (samples, restored))
    expect(torch.equal(before, after), "the loss of a stored trajectory is not that of the drawn one")


@check(
    "drawing.loss",
    "the loss is one finite float32 number per candidate, the same alone and in a batch; penalty 0 for a fresh adapter",
    "reduce over everything but the batch, in float32; compare with the adapters-off model for the penalty",
    "drawing",
)
def _loss(subject: Subject) -> None:
    samples = subject.draw(drawing_requests())
    seeds = list(range(len(samples)))
    with torch.no_grad():
        together = subject.backbone.generation_loss(samples, seeds)
        fresh = subject.fresh().generation_loss(samples, seeds)
        alone = [subject.backbone.generation_loss([s], [n]) for s, n in zip(samples, seeds, strict=True)]
    for name, values in (("loss", together.loss), ("penalty", together.penalty)):
        expect(values.shape == (len(samples),), f"{name} has shape {tuple(values.shape)} for {len(samples)} samples")
        expect(values.dtype is torch.float32, f"{name} is {values.dtype}, not float32")
        expect(values.isfinite().all(), f"{name} is not finite")
    scale = max(1.0, float(together.loss.abs().max()))
    close("loss in a batch against alone", together.loss, torch.cat([x.loss for x in alone]), subject.tolerance * scale)
    expect(float(together.penalty.min()) > 0, "a trained adapter has no penalty")
    expect(float(fresh.penalty.abs().max()) <= 1e-6, "a fresh adapter, which has no effect, has a penalty")


@check(
    "drawing.noise_seeds",
    "equal noise seeds give equal losses; flow losses depend on the seed, token losses do not",
    "draw timestep and noise from torch.Generator().manual_seed(noise_seed)",
    "drawing",
)
def _noise_seeds(subject: Subject) -> None:
    sample = subject.draw(drawing_requests()[:1])[0]
    with torch.no_grad():
        torch.manual_seed(1)
        first = subject.backbone.generation_loss([sample, sample], [3, 3]).loss
        torch.manual_seed(2)
        again = subject.backbone.generation_loss([sample, sample], [3, 4]).loss
    close("one candidate twice with one noise seed", first[0], first[1], subject.tolerance)
    close("again, other global seed", again[0], first[0], subject.tolerance)
    if subject.capabilities.image_loss == "flow":
        expect(not torch.allclose(again[0], again[1], rtol=1e-6), "two noise seeds give the same flow loss")
    else:
        close("another noise seed for a token loss", again[1], first[1], subject.tolerance)


@check(
    "drawing.token_logprobs",
    "generation_loss gives the log-probs of the sampled image tokens again, at every temperature; loss is their mean",
    "store log-probs of the policy that generation_loss evaluates: guidance off, same temperature",
    "tokens",
)
def _token_logprobs(subject: Subject) -> None:
    for temperature in (1.0, 0.7):
        samples = subject.draw(drawing_requests(), temperature=temperature)
        with torch.no_grad():
            result = subject.backbone.generation_loss(samples, [0] * len(samples))
        if result.token_logprobs is None or any(sample.token_logprobs is None for sample in samples):
            raise Violation("image_loss is 'tokens' but there are no token_logprobs")
        stored = torch.stack([sample.token_logprobs for sample in samples if sample.token_logprobs is not None])
        close(f"temperature {temperature}: log-probs", result.token_logprobs, stored, subject.tolerance)
        means = -result.token_logprobs.mean(-1)
        close("loss against the mean negative log-prob", result.loss, means, subject.tolerance)


@check(
    "drawing.flow_records",
    "a flow model has no token log-probs",
    "leave token_logprobs None, or declare image_loss='tokens'",
    "flow",
)
def _flow_records(subject: Subject) -> None:
    samples = subject.draw(drawing_requests()[:1])
    expect(samples[0].token_logprobs is None, "image_loss is 'flow' but samples have token_logprobs")
    result = subject.backbone.generation_loss(samples, [0])
    expect(result.token_logprobs is None, "image_loss is 'flow' but the loss has token_logprobs")


@check(
    "drawing.weighting",
    "gradients are linear in the candidates' weights, and a candidate of weight 0 contributes nothing",
    "keep the losses of a batch apart: no batch mean, no normalisation over the batch",
    "drawing",
    "float32",
)
def _weighting(subject: Subject) -> None:
    samples = subject.draw(drawing_requests(2))
    parameters = list(subject.backbone.trainable(Role.GENERATOR).values())

    def gradient(weights: list[float]) -> Tensor:
        loss = subject.backbone.generation_loss(samples[: len(weights)], list(range(len(weights)))).loss
        total = (loss * torch.tensor(weights, device=loss.device)).sum()
        grads = torch.autograd.grad(total, parameters, allow_unused=True)
        pairs = zip(grads, parameters, strict=True)
        return torch.cat([torch.zeros(p.numel()) if g is None else g.flatten().cpu() for g, p in pairs])

    first, second, both = gradient([1.0, 0.0]), gradient([0.0, 1.0]), gradient([0.5, 2.0])
    largest = float(both.abs().max())
    expect(largest > 0, "the loss has no gradient")
    error = float((both - (0.5 * first + 2 * second)).abs().max()) / largest
    expect(error <= 1e-3, f"gradients are not linear in the weights: {error:.1e} of the largest off")
    error = float((first - gradient([1.0])).abs().max()) / largest
    expect(error <= 1e-3, f"a candidate of weight 0 changes the gradient: {error:.1e} of the largest off")
    expect(not gradient([0.0, 0.0]).any(), "weights of 0 give a gradient that is not 0")


@check(
    "drawing.gradient",
    "the gradient of loss and penalty is the true one (finite differences)",
    "do not detach or no_grad the prompt's encoding; keep adapters active in the backward pass of checkpointed layers",
    "drawing",
    "float32",
)
def _gradient(subject: Subject) -> None:
    samples = subject.draw(drawing_requests(2))
    check_slopes("generator", subject.backbone.trainable(Role.GENERATOR), lambda: _objective(subject, samples))


@check(
    "drawing.all_adapters_learn",
    "every adapter tensor of the Generator gets a gradient, and those of the text roles get none",
    "call adapted layers as modules, not their weights; put adapters only on layers that drawing uses",
    "drawing",
)
def _learn(subject: Subject) -> None:
    torch.autograd.backward(_objective(subject, subject.draw(drawing_requests(2))))
    check_gradients(subject, Role.GENERATOR)


@check(
    "drawing.typed_errors",
    "a prompt that cannot be drawn raises an AsgError",
    "validate before the model runs; CapabilityError for a prompt that is too long",
    "drawing",
)
def _typed_errors(subject: Subject) -> None:
    for prompt in ("", "🙂 ünïcode", "word " * 1500):
        try:
            subject.draw([ImageRequest(prompt, 1)])
        except AsgError:
            continue
        except Exception as error:
            raise Violation(f"prompt {prompt[:20]!r} raises {type(error).__name__}: {error}") from error


def _objective(subject: Subject, samples: list[ImageSample]) -> Tensor:
    result = subject.backbone.generation_loss(samples, list(range(len(samples))))
    return (result.loss + result.penalty).sum()


def _differ(a: ImageSample, b: ImageSample) -> bool:
    pairs = zip(a.trajectory.values(), b.trajectory.values(), strict=True)
    return any(x.shape != y.shape or not torch.allclose(x.double(), y.double(), atol=1e-6) for x, y in pairs)


def _same_drawings(name: str, got: list[ImageSample], wanted: list[ImageSample], subject: Subject) -> None:
    """Tokens must agree exactly; latents, log-probs and pixels within the dtype's tolerance."""
    for i, (a, b) in enumerate(zip(got, wanted, strict=True)):
        for (key, x), (_, y) in zip(tensors_of(a), tensors_of(b), strict=True):
            whole = not x.is_floating_point()
            if key == "pixels":
                allowed = subject.pixel_tolerance
            else:
                allowed = 0.0 if whole else subject.tolerance * max(1.0, float(y.abs().max()))
            close(f"drawing {i} {name}, {key}", x, y, allowed)
