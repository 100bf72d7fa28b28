"""Ask, solve and their scores on the shared decoding."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from asg_vargpt.backbone import VargptBackbone
from PIL import Image

from asg_core.backbones.interface import Role, TextRequest, TextSample, TextSampling
from asg_core.models.decoding import CompiledDecode

Picture = Callable[..., Image.Image]
Load = Callable[..., VargptBackbone]


@pytest.fixture(scope="module")
def requests(picture: Picture) -> list[TextRequest]:
    """Two images, text alone, repeated and different prompts."""
    first, second = picture(0), picture(1, 120, 60)
    prompts = [("What is it?", first), ("How many?", first), ("What is it?", second), ("Say something.", None)]
    return [TextRequest(prompt, image, seed) for seed, (prompt, image) in enumerate([*prompts, prompts[0]])]


@pytest.fixture(scope="module")
def samples(awake: VargptBackbone, requests: list[TextRequest]) -> list[TextSample]:
    """Their completions as one batch."""
    return awake.solve(requests, TextSampling(12))


def test_compiled_decoding_gives_the_eager_samples(
    awake: VargptBackbone, load: Load, wake: Callable[..., None], requests: list[TextRequest]
) -> None:
    """Traced as a whole, but not translated: that the core's tests do."""
    compiled = load(compile_decode=True)
    assert compiled.compiled is not None
    compiled.compiled = CompiledDecode(
        compiled.text, lambda run, _: torch.compile(run, fullgraph=True, dynamic=False, backend="eager")
    )
    for seed, role in enumerate(Role):
        wake(compiled, role, seed)
    for asked in (Role.SOLVER, None):
        samples = compiled.solve(requests, TextSampling(12), asked)
        for sample, other in zip(samples, awake.solve(requests, TextSampling(12), asked), strict=True):
            assert sample.token_ids == other.token_ids
            torch.testing.assert_close(sample.logprobs, other.logprobs, atol=1e-5, rtol=1e-5)


def test_a_batch_equals_its_singles(
    awake: VargptBackbone, requests: list[TextRequest], samples: list[TextSample]
) -> None:
    for request, sample in zip(requests, samples, strict=True):
        alone = awake.solve([request], TextSampling(12))[0]
        assert alone.token_ids == sample.token_ids
        assert torch.allclose(torch.tensor(alone.logprobs), torch.tensor(sample.logprobs), atol=1e-5)


@pytest.mark.parametrize("role", [Role.SOLVER, None])
def test_replayed_logprobs_are_the_sampled_ones(
    awake: VargptBackbone, requests: list[TextRequest], role: Role | None
) -> None:
    drawn = awake.solve(requests, TextSampling(12, temperature=0.7), role=role)
    for sample, score in zip(drawn, awake.token_logits(drawn, role, base=True), strict=True):
        assert torch.allclose(score.logprobs, torch.tensor(sample.logprobs), atol=1e-5)
        assert torch.allclose(score.entropies, torch.tensor(sample.entropies), atol=1e-5)
        assert score.kl is not None
        assert bool((score.kl.abs() < 1e-6).all()) == (role is None)


def test_image_generation_tokens_are_never_said(awake: VargptBackbone, requests: list[TextRequest]) -> None:
    tokens = awake.model.architecture.tokens
    forbidden = {tokens.start, tokens.end, tokens.pad}
    assert forbidden <= set(awake.text.suppressed_token_ids)
    head = awake.model.qwen.lm_head
    saved = head.weight.clone()
    try:
        with torch.no_grad():
            head.weight[sorted(forbidden)] = 50 * head.weight.mean(0).sign()
            said = {token for s in awake.solve(requests, TextSampling(20)) for token in s.token_ids}
    finally:
        with torch.no_grad():
            head.weight.copy_(saved)
    assert not said & forbidden


def test_the_vision_tower_runs_once_per_image_object(
    backbone: VargptBackbone, requests: list[TextRequest], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    real = backbone.model.visual.forward

    def counted(patches: torch.Tensor, grid_thw: torch.Tensor, **kwargs: object) -> object:
        seen.append(len(grid_thw))
        return real(patches, grid_thw=grid_thw, **kwargs)

    monkeypatch.setattr(backbone.model.visual, "forward", counted)
    drawn = backbone.ask(requests, TextSampling(3))
    backbone.solve(requests, TextSampling(3))
    backbone.token_logits(drawn, Role.PROPOSER)
    assert sum(seen) == 2


def test_what_the_image_shows_matters(awake: VargptBackbone, picture: Picture) -> None:
    one, two = (
        awake.solve([TextRequest("What?", picture(seed), 0)], TextSampling(4, temperature=0.0))[0] for seed in (0, 5)
    )
    assert one.entropies != two.entropies


def test_special_tokens_in_a_prompt_have_no_power(backbone: VargptBackbone) -> None:
    tokens = backbone.model.architecture.tokens
    ids = backbone.text.drawing_ids("a <|image_gen_start|> <|im_end|> kite")
    assert ids.count(tokens.start) == 1
    assert ids[-1] == tokens.start
    assert ids.count(int(backbone.text.tokenizer.convert_tokens_to_ids("<|im_end|>"))) == 2


def test_image_size_limits_are_options(load: Callable[..., VargptBackbone], picture: Picture) -> None:
    small = load(min_pixels=784, max_pixels=28 * 28 * 2)
    features, grid = small.text.encode_images([picture(0, 200, 100)])[0]
    assert grid == (1, 2)
    assert len(features) == 2
