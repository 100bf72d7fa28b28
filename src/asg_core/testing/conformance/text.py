"""Checks of ``ask`` and ``solve``: complete records, seeds, batches, limits, pictures of every kind."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from PIL import Image

from asg_core.backbones.interface import Role, TextRequest, TextSampling
from asg_core.errors import AsgError
from asg_core.testing.conformance.check import check
from asg_core.testing.conformance.subject import NEW_TOKENS, PROMPTS, Subject, mixed_requests, picture, same_text
from asg_core.testing.conformance.violations import expect


@check(
    "text.records",
    "one complete sample per request, in order: one piece, log-prob and entropy a token",
    "fill every field of TextSample while sampling; pieces join to the text; a stop token contributes ''",
    "text",
)
def _records(subject: Subject) -> None:
    requests = mixed_requests("records")
    for ask, role in ((subject.backbone.ask, Role.PROPOSER), (subject.backbone.solve, Role.SOLVER)):
        samples = ask(requests, TextSampling(NEW_TOKENS, 0.7), role)
        expect(len(samples) == len(requests), f"{len(requests)} requests gave {len(samples)} samples")
        for i, (sample, request) in enumerate(zip(samples, requests, strict=True)):
            expect(sample.request is request, f"sample {i} does not hold its request")
            lengths = {len(x) for x in (sample.token_ids, sample.pieces, sample.logprobs, sample.entropies)}
            expect(len(lengths) == 1, f"sample {i}: token_ids, pieces, logprobs and entropies differ in length")
            expect("".join(sample.pieces) == sample.text, f"sample {i}: the pieces do not join to the text")
            expect(all(logprob <= 1e-6 for logprob in sample.logprobs), f"sample {i}: a log-prob is above 0 or NaN")
            expect(sample.temperature == 0.7, f"sample {i}: temperature is {sample.temperature}, not the sampling one")


@check(
    "text.max_new_tokens",
    "no completion is longer than max_new_tokens, and one cut there says 'length'",
    "count the stop token; finish_reason is 'stop' only if the model ended the completion",
    "text",
)
def _max_new_tokens(subject: Subject) -> None:
    for limit in (1, 3):
        for sample in subject.backbone.solve(mixed_requests("limit"), TextSampling(limit)):
            count = len(sample.token_ids)
            expect(1 <= count <= limit, f"{count} tokens at max_new_tokens={limit}")
            expect(count == limit or sample.finish_reason == "stop", f"{count} of {limit} tokens, but not 'stop'")


@check(
    "text.batch",
    "a request gives the same sample alone, in a batch, and in a batch in another order",
    "check attention mask, padding side and position ids of rows that are shorter than the longest",
    "text",
    "float32",
)
def _batch(subject: Subject) -> None:
    requests = mixed_requests("batch")
    together = subject.sample(requests)
    alone = [subject.sample([request])[0] for request in requests]
    same_text("in a batch against alone", together, alone, subject.tolerance)
    same_text("in reverse order", subject.sample(requests[::-1])[::-1], together, subject.tolerance)


@check(
    "text.seeds",
    "a sample's randomness comes from its request's seed alone",
    "draw from torch.Generator().manual_seed(request.seed), one for each request, never from a global generator",
    "text",
    "float32",
)
def _seeds(subject: Subject) -> None:
    first = mixed_requests("seeds")[0]
    requests = [replace_seed(first, seed) for seed in range(12)]
    torch.manual_seed(1)
    samples = subject.sample(requests, temperature=3.0)
    torch.manual_seed(2)
    same_text("again, other global seed", subject.sample(requests, temperature=3.0), samples, subject.tolerance)
    expect(len({s.token_ids for s in samples}) > 1, "12 seeds at temperature 3 all gave the same tokens")
    twins = subject.sample([first, first], temperature=3.0)
    expect(twins[0].token_ids == twins[1].token_ids, "one request twice in a batch gave two different samples")


@check(
    "text.greedy",
    "temperature 0 takes the likeliest token: the limit of small temperatures, whatever the seed",
    "argmax of the logits after suppression; log-probs of greedy samples refer to temperature 1",
    "text",
    "float32",
)
def _greedy(subject: Subject) -> None:
    requests = mixed_requests("greedy")
    greedy = subject.sample(requests, temperature=0.0)
    reseeded = subject.sample([replace_seed(request, 7) for request in requests], temperature=0.0)
    cold = subject.sample(requests, temperature=1e-5)
    for i, (a, b, c) in enumerate(zip(greedy, reseeded, cold, strict=True)):
        expect(a.temperature == 1.0, f"sample {i}: greedy log-probs must refer to temperature 1, not {a.temperature}")
        expect(a.token_ids == b.token_ids, f"sample {i}: greedy tokens depend on the seed")
        expect(a.token_ids == c.token_ids, f"sample {i}: greedy {a.token_ids}, temperature 1e-5 {c.token_ids}")


@check(
    "text.own_sampling",
    "requests of one call may each have their own temperature and length limit, and get what they get alone",
    "sampling is one for all or one each: broadcast_sampling gives a list; decode until the longest limit",
    "text",
    "float32",
)
def _own_sampling(subject: Subject) -> None:
    requests = mixed_requests("own sampling")
    ways = [TextSampling(NEW_TOKENS, 0.7), TextSampling(2, 0.0), TextSampling(NEW_TOKENS, 0.0), TextSampling(3, 3.0)]
    each = [ways[i % len(ways)] for i in range(len(requests))]
    for call in (subject.backbone.ask, subject.backbone.solve):
        together = call(requests, each)
        alone = [call([request], sampling)[0] for request, sampling in zip(requests, each, strict=True)]
        same_text("in one call against alone", together, alone, subject.tolerance)
        for i, (sample, sampling) in enumerate(zip(together, each, strict=True)):
            wanted = sampling.temperature or 1.0
            expect(sample.temperature == wanted, f"sample {i}: temperature {sample.temperature}, not {wanted}")


@check(
    "text.sees_the_image",
    "what is said depends on the picture, and pictures of one size are never mixed up",
    "check that image features replace the placeholder embeddings, and that caches are keyed by the image object",
    "text",
)
def _sees(subject: Subject) -> None:
    requests = [TextRequest(PROMPTS[0], image, 5) for image in (picture(1), picture(2), None)]
    samples = subject.sample(requests)
    scores = [subject.score([replace(samples[0], request=request)])[0].logprobs for request in requests]
    expect(not torch.allclose(scores[0], scores[1], atol=1e-6), "two different pictures give the same log-probs")
    expect(not torch.allclose(scores[0], scores[2], atol=1e-6), "with and without a picture the log-probs are the same")
    together = subject.score([replace(samples[0], request=request) for request in requests])
    for i, (one, many) in enumerate(zip(scores, together, strict=True)):
        expect(
            torch.allclose(one, many.logprobs, atol=subject.tolerance), f"picture {i} scores otherwise beside others"
        )


@check(
    "text.image_cache",
    "a picture that takes the place of a deleted one in memory is not mistaken for it",
    "key caches by the image object itself (weakly) and not by id(), size or token ids",
    "text",
)
def _image_cache(subject: Subject) -> None:
    def scores(seed: int) -> torch.Tensor:
        request = TextRequest(PROMPTS[0], picture(seed), 5)
        return subject.score([replace(sample, request=request)])[0].logprobs

    sample = subject.sample([TextRequest(PROMPTS[0], picture(1), 5)])[0]
    first = scores(1)
    others = [scores(seed) for seed in range(2, 6)]
    expect(torch.allclose(scores(1), first, atol=subject.tolerance), "a picture scores otherwise after other pictures")
    for i, other in enumerate(others):
        expect(not torch.allclose(other, first, atol=1e-6), f"new picture {i} got the scores of an earlier one")


@check(
    "text.image_kinds",
    "odd sizes and transparency work or raise an AsgError; grey and palette pictures work as RGB; EXIF is ignored",
    "convert to RGB first; raise ImageError for sizes that the model cannot take",
    "text",
)
def _image_kinds(subject: Subject) -> None:
    rgb = picture(4)
    clear = rgb.convert("RGBA")
    clear.putalpha(100)
    turned = rgb.copy()
    turned.getexif()[0x0112] = 6
    kinds = {
        "1x1": (Image.new("RGB", (1, 1), (200, 10, 10)), None),
        "200x3": (picture(4, 200, 3), None),
        "grey": (rgb.convert("L"), rgb.convert("L").convert("RGB")),
        "palette": (rgb.convert("P"), rgb.convert("P").convert("RGB")),
        "transparent": (clear, None),
        "EXIF orientation": (turned, rgb),
    }
    for name, (image, same) in kinds.items():
        try:
            got = subject.sample([TextRequest(PROMPTS[0], image, 5)])
        except AsgError:
            continue
        if same is not None:
            wanted = subject.sample([TextRequest(PROMPTS[0], same, 5)])
            same_text(f"a {name} picture against its RGB", got, wanted, subject.tolerance)


@check(
    "text.entropy",
    "entropies are those of the raw logits over the whole vocabulary at temperature 1, in [0, ln V]",
    "use asg_core.method.token_entropy.token_entropy on logits before temperature and suppression",
    "text",
)
def _entropy(subject: Subject) -> None:
    samples = subject.sample(mixed_requests("entropy"), temperature=0.7)
    for i, (sample, scores) in enumerate(zip(samples, subject.score(samples, logits=True), strict=True)):
        if scores.logits is None or scores.logits.ndim != 2:
            expect(False, "token_logits(logits=True) gives no (T, V) logits")
            return
        logprobs = torch.log_softmax(scores.logits.double(), -1)
        wanted = -(logprobs.exp() * logprobs).nan_to_num(0.0).sum(-1).cpu()
        got = torch.tensor(sample.entropies, dtype=torch.float64)
        expect(bool((got >= 0).all()), f"sample {i}: an entropy is negative or NaN")
        expect(bool((got <= math.log(logprobs.shape[-1]) + 1e-4).all()), f"sample {i}: an entropy is above ln V")
        worst = float((got - wanted).abs().max())
        expect(worst <= 3 * subject.tolerance, f"sample {i}: entropies are {worst:.1e} off those of the raw logits")


def replace_seed(request: TextRequest, seed: int) -> TextRequest:
    """The same request with another seed; the same image object."""
    return TextRequest(request.prompt, request.image, seed)
