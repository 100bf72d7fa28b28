"""Cases of the text side: greedy answers after images and prompts, and teacher-forced log-probs with gradients."""

from __future__ import annotations

from typing import Any

import torch
from PIL import Image
from torch import Tensor

from asg_bagel.kv_cache import Context, read
from asg_bagel.parity.setup import Replay
from asg_bagel.text import BagelText
from asg_core.backbones.interface import TextRequest, TextSampling
from asg_core.models.decoding import sample_text


class _Unstopped(BagelText):
    """Decodes past the end marker and samples from all rows, as the recording did."""

    @property
    def stop_token_ids(self) -> frozenset[int]:
        return frozenset()

    @property
    def suppressed_token_ids(self) -> tuple[int, ...]:
        return ()


def replay_understanding(fixture: Replay, key: str) -> None:
    """Images, prompt, greedy decoding: counters, features, keys and values, logits, tokens, entropies."""
    run, builder = fixture.run, fixture.builder
    case = run.value(key)
    images = _images(fixture, case)
    run.equal(f"{key} prompt ids", builder.tokenizer.encode(case["prompt"]), case["prompt_ids"])
    with torch.no_grad():
        context = _read_images(fixture, key, images)
        _check_counters(fixture, f"{key} after images", context, case["after_images"])
        _, context = read(builder.model.language_model.model, context, builder.text(case["prompt"]))
        _check_counters(fixture, f"{key} after prompt", context, case["after_prompt"])
        _check_keys_and_values(fixture, key, context)
        tokens = run.tensor(f"{key}/tokens")
        fed = builder.ids([builder.tokenizer.bos, *tokens.tolist()[:-1]])
        hidden, _ = read(builder.model.language_model.model, context, fed)
        logits = builder.model.language_model.lm_head(hidden)
    fixture.close(f"{key} logits", logits, run.tensor(f"{key}/logits"))
    fixture.close(
        f"{key} entropies", (-logits.softmax(-1) * logits.log_softmax(-1)).sum(-1), run.tensor(f"{key}/entropy_nats")
    )
    run.equal(f"{key} tokens", logits.argmax(-1), tokens)
    if len(images) <= 1:
        _check_decoding(fixture, key, case, images)


def replay_logprobs(fixture: Replay, key: str) -> None:
    """Log-probs of a given answer and their mean's gradients, through images, prompt and head."""
    run, builder = fixture.run, fixture.builder
    case = run.value(key)
    tokenizer, decoder = builder.tokenizer, builder.model.language_model.model
    answer = tokenizer.encode(case["answer"])
    run.equal(f"{key} answer ids", answer, case["answer_ids"])
    images = _images(fixture, case)
    for name in case["grad_norm_of_mean_ce"]:
        fixture.parameters[name].tensor.requires_grad_()
    text = [*tokenizer.text_segment(case["prompt"])], [tokenizer.bos, *answer, tokenizer.eos]
    with fixture.recorded_layout() as layout:
        context = Context()
        markers: list[int] = []
        for features in builder.see(images):
            _, context = read(decoder, context, builder.vision(features))
            markers += [tokenizer.image_start, *[-1] * len(features), tokenizer.image_end]
        _, context = read(decoder, context, builder.ids(text[0]))
        hidden, _ = read(decoder, context, builder.ids(text[1]))
    sequence = torch.tensor([*markers, *text[0], *text[1]])
    labels = torch.tensor([*answer, tokenizer.eos])
    logprobs = builder.model.language_model.lm_head(hidden[:-1]).log_softmax(-1).gather(-1, labels[:, None])[:, 0]
    start = len(sequence) - len(text[1])
    for name, actual in (
        ("attention_mask", layout.mask()),
        ("position_ids", torch.cat(layout.positions)),
        ("text_indexes", (sequence >= 0).nonzero()[:, 0]),
        ("text_ids", sequence[sequence >= 0]),
        ("labels", labels),
        ("loss_indexes", torch.arange(start, start + len(labels))),
    ):
        run.equal(f"{key} {name}", actual, run.tensor(f"{key}/{name}"))
    fixture.close(f"{key} logprobs", logprobs, run.tensor(f"{key}/logprobs"))
    fixture.close(f"{key} mean cross-entropy", -logprobs.mean(), case["mean_ce"])
    fixture.check_gradients(key, "gradient norm", -logprobs.mean(), case["grad_norm_of_mean_ce"])


def _images(fixture: Replay, case: dict[str, Any]) -> list[Image.Image]:
    names = case.get("image", [])
    images = [fixture.image(name) for name in ([names] if isinstance(names, str) else names)]
    if len(images) != case["n_images"]:
        raise ValueError(f"the case names {len(images)} images and counts {case['n_images']}")
    return [fixture.vae_rule.resize(image) for image in images] if case.get("double_resize") else images


def _read_images(fixture: Replay, key: str, images: list[Image.Image]) -> Context:
    run, builder, context = fixture.run, fixture.builder, Context()
    captured: list[Tensor] = []
    handles = [
        module.register_forward_hook(lambda _module, _inputs, output: captured.append(output))
        for module in (builder.model.vit_model.vision_model.post_layernorm, builder.model.connector)
    ]
    for features in builder.see(images):
        _, context = read(builder.model.language_model.model, context, builder.vision(features))
    for handle in handles:
        handle.remove()
    for name, actual in zip(("vit_last_hidden", "connector_out"), captured[:2], strict=False):
        if f"{key}/{name}" in run.names(key):
            fixture.close(f"{key} {name}", actual.flatten(0, -2), run.tensor(f"{key}/{name}"))
    return context


def _check_counters(fixture: Replay, name: str, context: Context, expected: dict[str, int]) -> None:
    fixture.run.equal(name, {"kv_len": context.length, "rope": context.counter}, expected)


def _check_keys_and_values(fixture: Replay, key: str, context: Context) -> None:
    for where, layer in (("kv0", 0), ("kvlast", -1)):
        for side, letter in enumerate("kv"):
            name = f"{key}/{where}_{letter}"
            if name in fixture.run.names(key):
                fixture.close(name, context.layers[layer][side][0].transpose(0, 1), fixture.run.tensor(name))


def _check_decoding(fixture: Replay, key: str, case: dict[str, Any], images: list[Image.Image]) -> None:
    """The same answer through the decoding loop that the roles use."""
    request = TextRequest(case["prompt"], images[0] if images else None, seed=0)
    (sample,) = sample_text(_Unstopped(fixture.builder), [request], TextSampling(case["steps"], temperature=0))
    fixture.run.equal(f"{key} decoded tokens", list(sample.token_ids), fixture.run.tensor(f"{key}/tokens").tolist())
    fixture.close(f"{key} decoded entropies", torch.tensor(sample.entropies), fixture.run.tensor(f"{key}/entropy_nats"))
