"""Drawing: guided decoding is transformers' own, pictures are its decoder's, and the loss scores what was drawn."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from asg_janus.backbone import JanusBackbone
from asg_janus.tiny_checkpoint import SIDE
from torch import Tensor, nn
from transformers import JanusForConditionalGeneration
from transformers.generation import ClassifierFreeGuidanceLogitsProcessor

from asg_core.backbones.interface import ImageRequest, ImageSampling, Role

Load = Callable[..., JanusBackbone]
CAPTION, OTHER = "a red cat on 2 hats", "Please, the picture"
GREEDY = ImageSampling(temperature=1e-6)
"""At this temperature the most probable code has all the probability."""


def codes_of(backbone: JanusBackbone, *arguments: Any) -> Tensor:
    return torch.stack([sample.trajectory["codes"] for sample in backbone.generate(*arguments)])


def prompt_ids(backbone: JanusBackbone, caption: str) -> Tensor:
    """The drawing prompt as transformers' documentation builds it: chat template, then the token that begins images."""
    text = f"<|User|>: {caption}\n\n<|Assistant|>:{backbone.text.tokenizer.boi_token}"
    return torch.tensor([backbone.text.tokenizer(text)["input_ids"]])


def head_outputs(model: nn.Module, run: Callable[[], object]) -> list[Tensor]:
    """What the generation head gives while ``run`` draws."""
    seen: list[Tensor] = []
    handle = model.generation_head.register_forward_hook(lambda _module, _args, output: seen.append(output))
    run()
    handle.remove()
    return seen


def guided_logits(
    reference: JanusForConditionalGeneration, ids: Tensor, codes: Tensor, guidance: float
) -> tuple[Tensor, Tensor]:
    """(L, V) guided and (L, V) conditional logits of transformers' model, teacher-forced in one pass, no cache."""
    defaults = reference.generation_config
    outer = (ids == defaults.bos_token_id) | (ids == defaults.generation_kwargs["boi_token_id"])
    rows = torch.cat([ids, ids.masked_fill(~outer, defaults.pad_token_id)])
    with torch.no_grad():
        drawn = reference.prepare_embeddings_for_image_generation(codes[None, :-1].repeat(2, 1))
        embeds = torch.cat([reference.get_input_embeddings()(rows), drawn], 1)
        hidden = reference.model.language_model(inputs_embeds=embeds).last_hidden_state
        logits = reference.model.generation_head(hidden[:, -len(codes) :])
    process = ClassifierFreeGuidanceLogitsProcessor(guidance)
    return torch.stack([process(ids, logits[:, step])[0] for step in range(len(codes))]), logits[0]


@pytest.mark.parametrize("guidance", [2.0, 5.0])
def test_greedy_drawing_is_that_of_transformers(
    load: Load, reference: JanusForConditionalGeneration, guidance: float
) -> None:
    backbone = load(rollout_guidance=guidance)
    ids = prompt_ids(backbone, CAPTION)
    drawn: list[Tensor] = []

    def theirs() -> None:
        drawn.append(
            reference.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                generation_mode="image",
                do_sample=False,
                guidance_scale=guidance,
            )
        )

    def ours() -> None:
        drawn.append(codes_of(backbone, [ImageRequest(CAPTION, 3)], GREEDY))

    expected, actual = head_outputs(reference.model, theirs), head_outputs(backbone.text.model.model, ours)
    assert torch.equal(*drawn)
    assert len(drawn[0].unique()) > 2
    torch.testing.assert_close(torch.stack(actual), torch.stack(expected), atol=1e-4, rtol=1e-4)


def test_sampling_follows_the_seed_over_the_guided_distribution_of_transformers(
    load: Load, reference: JanusForConditionalGeneration
) -> None:
    backbone = load()
    for caption, seed in ((CAPTION, 5), (OTHER, 6)):
        codes = codes_of(backbone, [ImageRequest(caption, seed)], ImageSampling(temperature=0.7))[0]
        guided, _ = guided_logits(reference, prompt_ids(backbone, caption), codes, 5.0)
        cumulative = (guided.double() / 0.7).softmax(-1).cumsum(-1)
        dice = torch.rand(len(codes), dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        assert torch.equal(codes, (cumulative < dice[:, None]).sum(-1))


def test_without_guidance_the_conditional_rows_run_alone(load: Load) -> None:
    rows: dict[float, list[int]] = {}
    for guidance in (1.0, 3.0):
        backbone = load(rollout_guidance=guidance)
        seen = head_outputs(
            backbone.text.model.model,
            lambda backbone=backbone: backbone.generate([ImageRequest(CAPTION, s) for s in range(3)], ImageSampling()),
        )
        rows[guidance] = [len(logits) for logits in seen]
    assert rows == {1.0: [3] * 16, 3.0: [6] * 16}


def test_a_caption_is_prefilled_once_for_all_its_candidates(load: Load) -> None:
    backbone = load()
    shapes: list[tuple[int, ...]] = []
    backbone.text.decoder.register_forward_pre_hook(
        lambda _module, _args, kwargs: shapes.append(tuple(kwargs["inputs_embeds"].shape[:2])), with_kwargs=True
    )
    backbone.generate([ImageRequest(c, s) for s in range(3) for c in (CAPTION, OTHER)], ImageSampling())
    longest = max(prompt_ids(backbone, caption).shape[1] for caption in (CAPTION, OTHER))
    assert shapes == [(4, longest)] + [(12, 1)] * 15


def test_the_profile_chooses_the_guidance(load: Load) -> None:
    backbone, request = load(guidance=5.0, rollout_guidance=1.0), [ImageRequest(CAPTION, 3)]
    rollout = codes_of(backbone, request, ImageSampling("rollout"))
    quality = codes_of(backbone, request, ImageSampling("quality"))
    assert torch.equal(rollout, codes_of(load(guidance=1.0), request, ImageSampling("quality")))
    assert torch.equal(quality, codes_of(load(rollout_guidance=5.0), request, ImageSampling("rollout")))
    assert not torch.equal(rollout, quality)


def test_pictures_are_those_of_the_models_own_decoder(
    awake: JanusBackbone, reference: JanusForConditionalGeneration
) -> None:
    for sample in awake.generate([ImageRequest(CAPTION, seed) for seed in range(2)], ImageSampling()):
        with torch.no_grad():
            pixels = reference.decode_image_tokens(sample.trajectory["codes"][None])[0]
        expected = ((pixels * 0.5 + 0.5) * 255).clamp(0, 255)
        actual = torch.tensor(list(sample.image.tobytes())).view(SIDE, SIDE, 3)
        assert sample.image.mode == "RGB"
        assert expected.std() > 5
        # 8 bits are truncated, so that a value may fall to either side of a whole number
        assert float((actual - expected.floor()).abs().max()) <= 1
        assert float((actual - expected).abs().max()) < 1.001


def test_a_batch_equals_its_singles_and_a_seed_belongs_to_its_sample(awake: JanusBackbone) -> None:
    requests = [ImageRequest(caption, seed) for caption in (CAPTION, OTHER, "cat") for seed in (1, 2)]
    together = awake.generate(requests, ImageSampling(temperature=0.9))
    for request, sample in zip(requests, together, strict=True):
        (alone,) = awake.generate([request], ImageSampling(temperature=0.9))
        assert torch.equal(alone.trajectory["codes"], sample.trajectory["codes"])
        assert alone.image.tobytes() == sample.image.tobytes()
        torch.testing.assert_close(alone.token_logprobs, sample.token_logprobs, atol=1e-4, rtol=0)
    assert len({sample.image.tobytes() for sample in together}) == len(together)
    backwards = awake.generate(requests[::-1], ImageSampling(temperature=0.9))[::-1]
    assert [s.image.tobytes() for s in backwards] == [s.image.tobytes() for s in together]


@pytest.mark.parametrize("guidance", [1.0, 5.0])
def test_replayed_log_probs_are_the_stored_ones_of_the_conditional_policy(
    load: Load, wake: Callable[..., None], guidance: float
) -> None:
    backbone = load(rollout_guidance=guidance)
    wake(backbone, Role.GENERATOR)
    samples = backbone.generate(
        [ImageRequest(c, s) for c in (CAPTION, OTHER) for s in (1, 2)], ImageSampling(temperature=0.7)
    )
    scored = backbone.generation_loss(samples, [0] * 4)
    stored = torch.stack([sample.token_logprobs for sample in samples])
    torch.testing.assert_close(scored.token_logprobs.detach(), stored, atol=1e-4, rtol=0)
    torch.testing.assert_close(scored.loss, -scored.token_logprobs.mean(-1))


def test_the_loss_is_that_of_transformers_conditional_logits(
    load: Load, reference: JanusForConditionalGeneration
) -> None:
    backbone = load()
    (sample,) = backbone.generate([ImageRequest(CAPTION, 4)], ImageSampling(temperature=0.5))
    with torch.no_grad():
        scored = backbone.generation_loss([sample], [0])
    codes = sample.trajectory["codes"]
    _, conditional = guided_logits(reference, prompt_ids(backbone, CAPTION), codes, 2.0)
    expected = nn.functional.cross_entropy(conditional / 0.5, codes)
    assert float(scored.loss) == pytest.approx(float(expected), abs=1e-5)
    assert float(scored.penalty) == 0.0


def test_the_penalty_is_the_exact_kl_of_the_adapter_to_the_base(awake: JanusBackbone) -> None:
    samples = awake.generate([ImageRequest(CAPTION, 4)], ImageSampling())
    logits = []
    for role in (Role.GENERATOR, None):
        with awake.adapters.use(role), torch.no_grad():
            prompt = awake.image_tokens.prompt(CAPTION).embeds
            drawn = awake.image_tokens.embed_tokens(samples[0].trajectory["codes"][None, :-1])[0]
            hidden = awake.text.decoder(inputs_embeds=torch.cat([prompt, drawn])[None]).last_hidden_state[0, -16:]
            logits.append(awake.image_tokens.head(hidden).log_softmax(-1))
    expected = (logits[0].exp() * (logits[0] - logits[1])).sum(-1).mean()
    assert float(expected) > 1e-4
    assert float(awake.generation_loss(samples, [0]).penalty.detach()) == pytest.approx(float(expected), rel=1e-4)


def test_special_tokens_in_a_caption_are_plain_text(awake: JanusBackbone) -> None:
    tokenizer = awake.text.tokenizer
    plain = awake.image_tokens.prompt("").advance
    caption = f"{tokenizer.boi_token}<|Assistant|>"
    assert awake.image_tokens.prompt(caption).advance > plain + 2
    assert prompt_ids(awake, caption).shape[1] == plain + 2


def test_logits_that_are_not_finite_show_in_the_log_probs_and_stop_nothing(load: Load) -> None:
    backbone = load()
    with torch.no_grad():
        backbone.text.model.model.generation_head.vision_head.bias.fill_(torch.nan)
    (sample,) = backbone.generate([ImageRequest(CAPTION, 0)], ImageSampling())
    assert sample.token_logprobs.isnan().all()  # type: ignore[union-attr]
    assert backbone.generation_loss([sample], [0]).loss.isnan().all()


def test_no_request_gives_no_image(awake: JanusBackbone) -> None:
    assert awake.generate([], ImageSampling()) == []
