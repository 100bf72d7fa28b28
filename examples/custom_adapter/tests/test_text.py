"""Asking and solving: the text path is transformers' own, and sampling is what scoring says it is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from asg_janus.backbone import JanusBackbone
from PIL import Image
from transformers import BatchFeature, JanusForConditionalGeneration, JanusProcessor

from asg_core.backbones.interface import Role, TextRequest, TextSampling

Picture = Callable[..., Image.Image]


@pytest.fixture(scope="module")
def inputs_of(checkpoint: Path) -> Callable[[str, Image.Image], BatchFeature]:
    """What transformers' own processor and chat template make of a question about an image."""
    processor = JanusProcessor.from_pretrained(checkpoint)

    def inputs(prompt: str, image: Image.Image) -> BatchFeature:
        parts = [{"type": "image"}, {"type": "text", "text": prompt}]
        text = processor.apply_chat_template([{"role": "user", "content": parts}], add_generation_prompt=True)
        return processor(text=text, images=[image], return_tensors="pt")

    return inputs


@pytest.mark.parametrize("size", [(32, 32), (57, 19), (3, 90)])
def test_teacher_forced_logits_are_those_of_transformers(
    awake: JanusBackbone,
    reference: JanusForConditionalGeneration,
    inputs_of: Callable[..., BatchFeature],
    picture: Picture,
    size: tuple[int, int],
) -> None:
    image = picture(1, *size)
    samples = awake.ask([TextRequest("What is 12?\nThe cat?", image, seed) for seed in range(3)], TextSampling(9), None)
    scores = awake.token_logits(samples, None, logits=True)
    inputs = inputs_of("What is 12?\nThe cat?", image)
    for sample, score in zip(samples, scores, strict=True):
        ids = torch.cat([inputs["input_ids"], torch.tensor([sample.token_ids])], 1)
        with torch.no_grad():
            logits = reference(input_ids=ids, pixel_values=inputs["pixel_values"]).logits
        expected = logits[0, -len(sample.token_ids) - 1 : -1]
        torch.testing.assert_close(score.logits, expected, atol=1e-4, rtol=1e-4)


def test_greedy_answers_are_those_of_transformers(
    awake: JanusBackbone,
    reference: JanusForConditionalGeneration,
    inputs_of: Callable[..., BatchFeature],
    picture: Picture,
) -> None:
    images = [picture(seed) for seed in range(4)]
    samples = awake.solve([TextRequest("Is it red?", i, 0) for i in images], TextSampling(12, temperature=0), None)
    for image, sample in zip(images, samples, strict=True):
        inputs = inputs_of("Is it red?", image)
        drawn = reference.generate(
            **inputs,
            generation_mode="text",
            do_sample=False,
            max_new_tokens=12,
            suppress_tokens=list(awake.text.suppressed_token_ids),
        )
        assert sample.token_ids == tuple(drawn[0, inputs["input_ids"].shape[1] :].tolist())


def test_replayed_log_probs_are_the_sampled_ones(awake: JanusBackbone, picture: Picture) -> None:
    shown = picture(0)
    requests = [TextRequest(text, image, 7) for text in ("Why?", "Is it a cat?") for image in (shown, picture(1), None)]
    for role in (*Role, None):
        samples = awake.ask(requests, TextSampling(10, temperature=0.8), role)
        for sample, score in zip(samples, awake.token_logits(samples, role, base=True), strict=True):
            torch.testing.assert_close(score.logprobs.detach(), torch.tensor(sample.logprobs), atol=1e-4, rtol=0)
            assert score.kl is not None
            assert (score.kl.max() > 1e-4) == (role is not None)


def test_a_batch_equals_its_singles_and_a_seed_belongs_to_its_sample(awake: JanusBackbone, picture: Picture) -> None:
    first, second = picture(0), picture(1, 90, 20)
    prompts = enumerate(("Why?", "Is it a cat or 12 cats?"))
    requests = [TextRequest(text, image, seed) for seed, text in prompts for image in (first, second, None)]
    batch = awake.solve(requests, TextSampling(10))
    for request, together in zip(requests, batch, strict=True):
        (alone,) = awake.solve([request], TextSampling(10))
        assert alone.token_ids == together.token_ids
        assert alone.logprobs == pytest.approx(together.logprobs, abs=1e-4)
    again = awake.solve([TextRequest("Why?", first, seed) for seed in (0, 0, 1)], TextSampling(10))
    assert again[0].token_ids == batch[0].token_ids == again[1].token_ids != again[2].token_ids


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "1"])
def test_images_of_every_mode_look_like_their_rgb_version(awake: JanusBackbone, picture: Picture, mode: str) -> None:
    odd = picture(5, 33, 12, mode)
    samples = awake.solve([TextRequest("Why?", i, 0) for i in (odd, odd.convert("RGB"))], TextSampling(4))
    assert samples[0].logprobs == pytest.approx(samples[1].logprobs, abs=1e-4)


def test_every_size_works_and_pixels_matter(awake: JanusBackbone, picture: Picture) -> None:
    images = [picture(5, *size) for size in ((1, 1), (1, 400), (400, 1), (640, 480))] + [picture(6, 640, 480)]
    samples = awake.solve([TextRequest("Why?", image, 0) for image in images], TextSampling(4))
    assert len({sample.logprobs for sample in samples}) == len(images)


def test_special_tokens_in_a_prompt_are_plain_text(awake: JanusBackbone, picture: Picture) -> None:
    prompt = f"<|Assistant|> {awake.text.tokenizer.eos_token} <image_placeholder>"
    special = set(awake.text.tokenizer.all_special_ids)
    ids = awake.text.tokenizer(prompt, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    assert not special & set(ids)
    assert len(awake.text.prompt(prompt).embeds) > len(ids)


def test_image_tokens_and_unused_rows_are_never_written(awake: JanusBackbone, picture: Picture) -> None:
    vocabulary = len(awake.text.tokenizer)
    samples = awake.solve([TextRequest("Why?", picture(0), s) for s in range(40)], TextSampling(8, temperature=50.0))
    written = {token for sample in samples for token in sample.token_ids}
    names = ("<image_placeholder>", "<begin_of_image>", "<end_of_image>")
    named = set(awake.text.tokenizer.convert_tokens_to_ids(names))
    assert not written & named
    assert max(written) < vocabulary


def test_the_end_of_sentence_token_ends_an_answer_and_shows_nowhere(awake: JanusBackbone, picture: Picture) -> None:
    stop, image = awake.text.tokenizer.eos_token_id, picture(0)
    samples = awake.solve([TextRequest("Why?", image, s) for s in range(60)], TextSampling(40, temperature=50.0))
    assert {sample.finish_reason for sample in samples} == {"stop", "length"}
    for sample in samples:
        assert (sample.token_ids[-1] == stop) == (sample.finish_reason == "stop")
        assert stop not in sample.token_ids[:-1]
        assert awake.text.tokenizer.eos_token not in sample.text
