"""Parity of understanding: ids, positions, vision features, prefill, greedy decoding, teacher-forced log-probs."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

import torch
from torch import Tensor

from asg_blip3o.parity.setup import Stage, close
from asg_blip3o.processing import ASSISTANT, SYSTEM, USER
from asg_core.backbones.interface import Role, TextRequest, TextSample, TextSampling
from asg_core.models.decoding import join_segments, sample_text, token_logits


class _Bare:
    """No adapters."""

    def use(self, role: Role | None) -> nullcontext[None]:
        return nullcontext()


def replay_understanding(stage: Stage, name: str) -> None:
    """One recorded question about an image, through the shared decoding of the core."""
    run, cases, language = stage.run, stage.cases, stage.language
    with run.case(name), torch.no_grad():
        question: str = cases.take(name, "question")
        image = stage.image(f"pre.{name}.image_u8")
        run.equal(f"{name}.template", f"{SYSTEM}{USER}<image>\n{question}{ASSISTANT}", cases.take(name, "chat_text"))
        shown = language.patches([image])
        run.equal(f"{name}.grid", [list(shown[0].grid)], run.tensor(f"{name}.image_grid_thw").tolist())
        close(run, f"{name}.pixel_values", shown[0].pixels, run.tensor(f"{name}.pixel_values"))
        features = language.image_features(shown)[0]
        close(run, f"{name}.vision_features", features, run.tensor(f"{name}.vision_features"))
        _check_layout(stage, name, question, len(features))
        segment = join_segments([*language.prefixes([image]), language.prompt(question)])
        length = len(segment.embeds)
        run.equal(f"{name}.position_ids", segment.positions[:, None], run.tensor(f"{name}.position_ids"))
        run.equal(f"{name}.rope_deltas", [[segment.advance - length]], run.tensor(f"{name}.rope_deltas").tolist())
        mask = torch.ones(1, 1, length, length, dtype=torch.bool).tril()
        hidden = language.forward(segment.embeds[None], mask, segment.positions[:, None], language.new_cache())
        expected = run.tensor(f"{name}.prefill_logits_last8")
        close(run, f"{name}.prefill_logits_last8", language.head(hidden[0, -expected.shape[1] :])[None], expected)
        request = TextRequest(question, image, seed=0)
        _check_greedy(stage, name, request)
        _check_completions(stage, name, request)


def _check_layout(stage: Stage, name: str, question: str, image_tokens: int) -> None:
    special, encode = stage.vocabulary.special, stage.vocabulary.encode
    picture = [special.vision_start, *[special.image_pad] * image_tokens, special.vision_end]
    ids = [encode(SYSTEM + USER) + picture + encode(question + ASSISTANT)]
    stage.run.equal(f"{name}.input_ids", ids, stage.run.tensor(f"{name}.input_ids").tolist())
    stage.run.equal(f"{name}.attention_mask", [[1] * len(ids[0])], stage.run.tensor(f"{name}.attention_mask").tolist())


def _check_greedy(stage: Stage, name: str, request: TextRequest) -> None:
    run = stage.run
    expected = run.tensor(f"{name}.greedy_ids")
    greedy = sample_text(stage.language, [request], TextSampling(expected.shape[1], temperature=0.0))[0]
    run.equal(f"{name}.greedy_ids", [list(greedy.token_ids)], expected.tolist())
    entropies = run.tensor(f"{name}.greedy_token_entropy")
    close(run, f"{name}.greedy_token_entropy", torch.tensor([greedy.entropies]), entropies)
    close(run, f"{name}.greedy_logits", _logits(stage, greedy)[None], run.tensor(f"{name}.greedy_logits"))


def _check_completions(stage: Stage, name: str, request: TextRequest) -> None:
    """Log-probs of a completion as it is, and in the original trainer's convention: stripped, end mark, newline."""
    run, cases, encode = stage.run, stage.cases, stage.vocabulary.encode
    text: str = cases.take(name, "completion")
    cases.take(name, "asg_note")
    for kind, written in (("", text), ("asg_", f"{text.strip()}<|im_end|>\n")):
        ids = encode(written)
        run.equal(f"{name}.{kind}completion_ids", [ids], run.tensor(f"{name}.{kind}completion_ids").tolist())
        logprobs = _logprobs(stage, request, ids)
        close(run, f"{name}.{kind}completion_logprobs", logprobs[None], run.tensor(f"{name}.{kind}completion_logprobs"))
        if kind:
            close(run, f"{name}.asg_mean_logprob", float(logprobs.mean()), cases.take(name, "asg_mean_logprob"))
        else:
            close(run, f"{name}.sum_logprob", float(logprobs.sum()), cases.take(name, "sum_logprob"))


def _logprobs(stage: Stage, request: TextRequest, ids: Sequence[int]) -> Tensor:
    """(T,) nats over the whole vocabulary: the original suppresses no token."""
    nothing = (0.0,) * len(ids)
    sample = TextSample(request, "", tuple(ids), ("",) * len(ids), nothing, nothing, "length", 1.0)
    return _logits(stage, sample).log_softmax(-1).gather(-1, torch.tensor(ids)[:, None])[:, 0]


def _logits(stage: Stage, sample: TextSample) -> Tensor:
    logits = token_logits(stage.language, [sample], _Bare(), None, logits=True)[0].logits
    assert logits is not None
    return logits
