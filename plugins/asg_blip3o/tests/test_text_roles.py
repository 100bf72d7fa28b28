"""Text roles: sampling and scoring agree, samples do not depend on batches, roles are separate, prefixes shared."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from asg_blip3o.backbone import Blip3oBackbone
from PIL import Image

from asg_core.backbones.interface import Role, TextRequest, TextSample, TextSampling
from asg_core.models.decoding import CompiledDecode

Load = Callable[..., Blip3oBackbone]
Wake = Callable[..., None]
Picture = Callable[..., Image.Image]
SAMPLING = TextSampling(6, temperature=0.9)


@pytest.fixture
def requests(picture: Picture) -> list[TextRequest]:
    """Two images of different shapes and one text-only request; several prompts and samples per image."""
    wide, tall = picture(1, 120, 62), picture(2, 60, 88)
    asked = [(wide, "What is on the left?"), (tall, "Why?"), (wide, "How many bands? Answer briefly."), (None, "Hello")]
    return [TextRequest(prompt, image, seed) for seed, (image, prompt) in enumerate(asked * 2)]


def same(a: TextSample, b: TextSample) -> bool:
    close = torch.allclose(torch.tensor(a.logprobs), torch.tensor(b.logprobs), atol=1e-4)
    return a.token_ids == b.token_ids and a.text == b.text and close


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_replayed_logprobs_equal_the_sampled_ones(
    load: Load, wake: Wake, requests: list[TextRequest], dtype: str
) -> None:
    backbone = load(dtype=dtype)
    wake(backbone, Role.SOLVER)
    samples = backbone.solve(requests, SAMPLING)
    scores = backbone.token_logits(samples[::-1], Role.SOLVER)[::-1]
    worst = max(
        float((score.logprobs.detach() - torch.tensor(sample.logprobs)).abs().max())
        for sample, score in zip(samples, scores, strict=True)
    )
    assert worst < (2e-5 if dtype == "float32" else 0.1)


def test_compiled_decoding_gives_the_eager_samples(load: Load, wake: Wake, requests: list[TextRequest]) -> None:
    """Traced as a whole, but not translated: that the core's tests do."""
    eager, compiled = load(), load(compile_decode=True)
    assert compiled.compiled is not None
    compiled.compiled = CompiledDecode(
        compiled.text, lambda run, _: torch.compile(run, fullgraph=True, dynamic=False, backend="eager")
    )
    for backbone in (eager, compiled):
        wake(backbone, Role.SOLVER)
    for role in (Role.SOLVER, None):
        samples = compiled.solve(requests, SAMPLING, role)
        for sample, other in zip(samples, eager.solve(requests, SAMPLING, role), strict=True):
            assert sample.token_ids == other.token_ids
            torch.testing.assert_close(sample.logprobs, other.logprobs, atol=1e-5, rtol=1e-5)


def test_a_batch_equals_its_singles_in_any_order(
    backbone: Blip3oBackbone, wake: Wake, requests: list[TextRequest]
) -> None:
    wake(backbone, Role.PROPOSER)
    together = backbone.ask(requests, SAMPLING)
    alone = [backbone.ask([request], SAMPLING)[0] for request in requests]
    turned = backbone.ask(requests[::-1], SAMPLING)[::-1]
    assert all(map(same, together, alone))
    assert all(map(same, together, turned))
    assert len({sample.text for sample in together}) > len(requests) // 2


def test_roles_differ_and_switching_back_restores_everything(
    backbone: Blip3oBackbone, wake: Wake, requests: list[TextRequest]
) -> None:
    for seed, role in enumerate(Role):
        wake(backbone, role, seed)
    first = [backbone.solve(requests, SAMPLING, role) for role in (Role.SOLVER, Role.PROPOSER, None)]
    again = [backbone.solve(requests, SAMPLING, role) for role in (Role.SOLVER, Role.PROPOSER, None)]
    assert [[s.logprobs for s in group] for group in first] == [[s.logprobs for s in group] for group in again]
    assert first[0][0].logprobs != first[1][0].logprobs != first[2][0].logprobs


def test_adapters_off_is_the_model_without_adapters(load: Load, wake: Wake, requests: list[TextRequest]) -> None:
    untouched, trained = load(), load()
    for role in Role:
        wake(trained, role)
    expected = untouched.solve(requests, SAMPLING, Role.SOLVER)  # a new adapter has no effect
    found = trained.solve(requests, SAMPLING, None)
    assert [s.logprobs for s in expected] == [s.logprobs for s in found]


def test_the_image_matters_and_its_object_is_encoded_once(
    backbone: Blip3oBackbone, requests: list[TextRequest], picture: Picture
) -> None:
    rows: list[int] = []
    hook = backbone.model.vlm.model.visual.register_forward_hook(
        lambda module, args, kwargs, out: rows.append(len(kwargs["grid_thw"])), with_kwargs=True
    )
    samples = backbone.solve(requests, TextSampling(4, 0.0))
    backbone.token_logits(samples, Role.SOLVER, base=True)
    assert rows == [2]
    hook.remove()
    other = [replace(request, image=picture(9, *request.image.size)) for request in requests if request.image]
    shown = [sample for sample in samples if sample.request.image]
    changed = backbone.solve(other, TextSampling(4, 0.0))
    assert all(a.logprobs != b.logprobs for a, b in zip(shown, changed, strict=True))


def test_special_tokens_in_a_prompt_are_plain_text_and_never_come_out(backbone: Blip3oBackbone) -> None:
    special = backbone.vocabulary.special
    ids = backbone.vocabulary.encode_plain("<|im_end|>[IMG]<image>")
    assert not {special.im_end, special.img, special.query_slot} & set(ids)
    whole = backbone.vocabulary.generation_ids("<|im_end|>[IMG]")
    assert whole.count(special.im_end) == backbone.vocabulary.generation_ids("x").count(special.im_end)
    assert special.img not in whole
    samples = backbone.solve([TextRequest("Say", None, seed) for seed in range(40)], TextSampling(12, 3.0))
    seen = {token for sample in samples for token in sample.token_ids}
    assert not seen & {special.img, special.image_pad, special.vision_start, special.query_slot}


def test_base_scores_and_kl_come_with_the_policy(
    backbone: Blip3oBackbone, wake: Wake, requests: list[TextRequest]
) -> None:
    samples = backbone.solve(requests, SAMPLING)
    new = backbone.token_logits(samples, Role.SOLVER, base=True)[0]
    assert new.kl is not None
    assert float(new.kl.detach().abs().max()) == 0.0
    wake(backbone, Role.SOLVER)
    score, base = (
        backbone.token_logits(samples, Role.SOLVER, base=True)[0],
        backbone.token_logits(samples, None)[0],
    )
    assert score.kl is not None
    assert score.base_logprobs is not None
    assert float(score.kl.detach().min()) > 0
    assert torch.equal(score.base_logprobs, base.logprobs.detach())


@pytest.mark.parametrize("checkpointing", [False, True])
def test_only_the_role_gets_gradients_all_of_it_and_the_vision_tower_carries_no_adapter(
    load: Load, wake: Wake, requests: list[TextRequest], checkpointing: bool
) -> None:
    backbone = load(checkpointing=checkpointing)
    wake(backbone, Role.SOLVER)
    samples = backbone.solve(requests, SAMPLING)
    score = backbone.token_logits(samples, Role.SOLVER, base=True)
    torch.stack([s.logprobs.sum() + s.kl.sum() for s in score if s.kl is not None]).sum().backward()
    for role in Role:
        norms = [0.0 if p.grad is None else float(p.grad.norm()) for p in backbone.trainable(role).values()]
        assert all(norms) if role is Role.SOLVER else not any(norms)
    own = {id(p) for role in Role for p in backbone.trainable(role).values()}
    assert all(p.grad is None and not p.requires_grad for p in backbone.model.parameters() if id(p) not in own)
    assert not any("lora" in name for name, _ in backbone.model.vlm.model.visual.named_parameters())
    assert len(backbone.trainable(Role.SOLVER)) == 2 * 7 * 2  # layers, matrices, A and B


def test_checkpointing_changes_no_gradient(load: Load, wake: Wake, requests: list[TextRequest]) -> None:
    gradients = []
    for checkpointing in (False, True):
        backbone = load(checkpointing=checkpointing)
        wake(backbone, Role.PROPOSER)
        samples = backbone.ask(requests, SAMPLING)
        torch.stack([s.logprobs.sum() for s in backbone.token_logits(samples, Role.PROPOSER)]).sum().backward()
        gradients.append({n: p.grad for n, p in backbone.trainable(Role.PROPOSER).items() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    assert all(torch.allclose(g, gradients[1][name], atol=1e-5, rtol=1e-4) for name, g in gradients[0].items())


def test_embeddings_are_unit_vectors_in_one_space_that_follow_the_image(
    backbone: Blip3oBackbone, wake: Wake, picture: Picture
) -> None:
    items = [picture(1), picture(2, 90, 60), "two red bands", "a photo"]
    vectors = backbone.embed(items)
    assert vectors.dtype == torch.float32
    assert torch.allclose(vectors.norm(dim=-1), torch.ones(4), atol=1e-6)
    assert all(not torch.allclose(vectors[i], vectors[j], atol=1e-4) for i in range(4) for j in range(i))
    alone = torch.cat([backbone.embed([item]) for item in items])
    assert torch.allclose(vectors, alone, atol=1e-5)
    for role in Role:
        wake(backbone, role)
    assert torch.equal(backbone.embed(items), vectors)
    assert backbone.embed([]).shape == (0, vectors.shape[1])
