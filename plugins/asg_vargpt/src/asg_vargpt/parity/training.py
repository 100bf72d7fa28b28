"""Training cases: target preprocessing, quantisation, and the original's training loss with its gradient norms.

The original trains text and image in one sequence, pads the image to a multiple of 128 positions, and lets the text
loss run over everything that is not padding of the image; the plugin itself trains neither on prompts nor on padding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from asg_core.testing import ParityRun
from asg_vargpt.modeling_vargpt import Vargpt
from asg_vargpt.parity.drawing import recorded_schedule
from asg_vargpt.parity.setup import HIDDEN, RELATIVE, Subject, compare_norms, gradients, picture
from asg_vargpt.processing import pixels_of, target_image
from asg_vargpt.quantizer import encode, inputs_of
from asg_vargpt.sampling import start_condition
from asg_vargpt.scales import Schedule
from asg_vargpt.scoring import bit_scores, conditional_logits, decode_logits, image_cells, language_hidden

IMAGE_WEIGHT = 3.0
PAD_MULTIPLE = 128


@dataclass(frozen=True, eq=False)
class _Case:
    name: str
    labels: Tensor
    fed_back: Tensor
    drop_condition: bool = False


def replay(run: ParityRun, subject: Subject) -> None:
    """All ``train`` cases and the teacher-forced scores of the drawn image."""
    plan = recorded_schedule(run)
    with run.case("target"):
        _replay_target(run, subject, plan)
    features = run.tensor("train.raw_features")
    with run.case("train bits"):
        plain = encode(features, plan)
        run.equal("train.gt_bits", plain.labels, run.tensor("train.gt_bits")[None])
        run.equal("train.fed_back_bits", plain.fed_back, run.tensor("train.fed_back_bits")[None])
    with run.case("train_bsc bits"):
        flipped = encode(features, plan, run.tensor("train_bsc.fed_back_bits")[None])
        run.equal("train_bsc.gt_bits", flipped.labels, run.tensor("train_bsc.gt_bits")[None])
        run.close("train_bsc.x_wo_prefix", flipped.inputs[0], run.tensor("train_bsc.x_wo_prefix"), HIDDEN)
    sampled = torch.cat([run.tensor(f"gen.s{scale}.bits") for scale in range(len(plan.grids))])[None]
    dropped = run.tensor("train_drop.fed_back_bits")[None]
    labels, corrected = run.tensor("train.gt_bits")[None], run.tensor("train_bsc.gt_bits")[None]
    cases = (
        _Case("train", labels, run.tensor("train.fed_back_bits")[None]),
        _Case("train_bsc", corrected, run.tensor("train_bsc.fed_back_bits")[None]),
        _Case("train_drop", dropped, dropped, drop_condition=True),
        _Case("tf_sampled", sampled, sampled),
    )
    for case in cases:
        with run.case(case.name):
            _replay_loss(run, subject, plan, case)
    with run.case("tf_sampled paths"):
        _replay_paths(run, subject, plan, sampled)


@torch.no_grad()
def _replay_target(run: ParityRun, subject: Subject, plan: Schedule) -> None:
    target = target_image(picture(run, "gen_source.png"), plan.pixels)
    expected = picture(run, "gen_target.png")
    run.close("gen_target.png", torch.tensor(np.asarray(target)), torch.tensor(np.asarray(expected)), 0.0)
    features = subject.model.vae.encode(pixels_of([expected]))
    run.close("train.raw_features", features, run.tensor("train.raw_features"), HIDDEN)


def _replay_loss(run: ParityRun, subject: Subject, plan: Schedule, case: _Case) -> None:
    recorded: dict[str, Any] = run.value(case.name)
    prompt = run.tensor("gen.prompt_ids")
    with gradients(subject, list(recorded["grad_norms"])) as parameters:
        logits, text_loss = _training_forward(run, subject, plan, prompt, case)
        scores = bit_scores(logits, case.labels, plan)
        image_loss = -scores.logprobs.mean()
        total = text_loss + IMAGE_WEIGHT * image_loss
        if f"{case.name}.gen_logits" in run.names(case.name):
            run.close(f"{case.name}.gen_logits", logits[0], run.tensor(f"{case.name}.gen_logits"), HIDDEN)
        values = {
            "loss_text_ce": text_loss,
            "loss_image_bit_ce": image_loss,
            "loss_total": total,
            "recombined_text_plus_3x_image": total,
            "sum_bit_logprob": scores.per_image[0],
        }
        for key, value in values.items():
            run.close(f"{case.name}.{key}", value, recorded[key], RELATIVE * abs(recorded[key]))
        for scale, expected in enumerate(recorded["per_scale_sum_bit_logprob"]):
            value = scores.per_scale[0, scale]
            run.close(f"{case.name}.per_scale_sum_bit_logprob {scale}", value, expected, RELATIVE * abs(expected))
        total.backward()  # type: ignore[no-untyped-call]
        compare_norms(run, f"{case.name}.grad_norms", recorded["grad_norms"], parameters)


def _training_forward(
    run: ParityRun, subject: Subject, plan: Schedule, prompt: Tensor, case: _Case
) -> tuple[Tensor, Tensor]:
    """Bit logits (1, L, bits, 2) and the text loss of the original's training sequence."""
    model = subject.model
    tokens = model.architecture.tokens
    length, spare = plan.positions, -plan.positions % PAD_MULTIPLE
    run.equal(f"{case.name} image tokens", length, run.value("train_image_tokens"))
    run.equal(f"{case.name} padded", length + spare, run.value("train_image_tokens_padded"))
    closing = [tokens.end, subject.text.tokenizer.convert_tokens_to_ids("<|im_end|>")]
    ids = torch.cat((prompt, torch.tensor([[tokens.pad] * (length + spare) + closing])), dim=1)
    start, stop = prompt.shape[1], prompt.shape[1] + length + spare
    condition = start_condition(model, 0, 1) if case.drop_condition else start_condition(model, 1)
    cells = image_cells(model, condition, inputs_of(case.fed_back, plan))
    image = model.projector_in(F.pad(cells, (0, 0, 0, spare)))
    embeds = model.language_model.embed_tokens(ids)
    hidden = language_hidden(model, torch.cat((embeds[:, :start], image, embeds[:, stop:]), dim=1))
    logits = decode_logits(model, hidden[:, start : start + length], hidden[:, : start - 1], condition, plan)
    targets = ids.masked_fill(ids == tokens.pad, -100)
    text = F.cross_entropy(model.qwen.lm_head(hidden[0, :-1]).float(), targets[0, 1:], ignore_index=-100)
    return logits, text


@torch.no_grad()
def _replay_paths(run: ParityRun, subject: Subject, plan: Schedule, bits: Tensor) -> None:
    """Without padding, the log-prob of the drawn image is the recorded one: the plugin's own scoring path."""
    recorded = run.value("tf_sampled")
    prompt = run.tensor("gen.prompt_ids")[0].tolist()
    scores = bit_scores(conditional_logits(subject.model, prompt, bits, plan), bits, plan)
    expected = recorded["sum_bit_logprob"]
    run.close("tf_sampled own sum_bit_logprob", scores.per_image[0], expected, RELATIVE * abs(expected))
    for name in run.names("gen.s"):
        if name.endswith(".head_logits"):
            _compare_heads(run, subject.model, plan, prompt, bits, name)


def _compare_heads(run: ParityRun, model: Vargpt, plan: Schedule, prompt: list[int], bits: Tensor, name: str) -> None:
    scale = int(name.split(".")[1].removeprefix("s"))
    start = sum(plan.lengths[:scale])
    logits = conditional_logits(model, prompt, bits, plan)[0, start : start + plan.lengths[scale]]
    run.close(f"tf_sampled {name} in one forward", logits.flatten(-2), run.tensor(name)[0], HIDDEN)
