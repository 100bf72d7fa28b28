"""Drawing cases: the prompt, the scale loop step by step with the recorded bits, the filters, the decoded image."""

from __future__ import annotations

import re

import torch
from torch import Tensor

from asg_core.testing import ParityRun
from asg_vargpt.parity.setup import DECODED, GUIDED, HIDDEN, RELATIVE, Subject
from asg_vargpt.prefill import Prefilled, context_rows, prefill
from asg_vargpt.processing import to_images
from asg_vargpt.sampling import ScaleStep, draw, draw_bits, filtered_logits, first_cells, start_condition
from asg_vargpt.scales import Schedule, schedule
from asg_vargpt.scoring import bit_scores


@torch.no_grad()
def replay(run: ParityRun, subject: Subject) -> None:
    """All ``gen`` and ``samp`` cases."""
    with run.case("samp"):
        _replay_filters(run)
    with run.case("gen prompt"):
        _replay_tokens(run, subject)
    with run.case("gen"):
        plan = recorded_schedule(run)
        prompts = prefill(subject.model, run.tensor("gen.prompt_ids").tolist())
        _replay_prompt(run, subject, prompts)
        latent = _replay_scales(run, subject, prompts, plan)
        _replay_decoding(run, subject, latent)


def recorded_schedule(run: ParityRun) -> Schedule:
    """The schedule of the fixture's aspect ratio and resolution, compared with the recorded one."""
    plan = schedule(run.value("h_div_w"), run.value("pn"))
    run.equal("scale_schedule", [[1, h, w] for h, w in plan.grids], run.value("scale_schedule"))
    run.equal("target_pixels_hw", list(plan.pixels), run.value("target_pixels_hw"))
    return plan


def _replay_filters(run: ParityRun) -> None:
    logits = run.tensor("samp.logits")
    for name in run.names("samp.filtered_probs"):
        match = re.fullmatch(r"samp\.filtered_probs_topk(\d+)_topp(\d)(\d*)", name)
        if match is None:
            raise ValueError(f"{name} does not say its top-k and top-p")
        top_p = float(f"{match[2]}.{match[3] or 0}")
        run.close(name, filtered_logits(logits, int(match[1]), top_p).softmax(-1), run.tensor(name), HIDDEN)


def _replay_tokens(run: ParityRun, subject: Subject) -> None:
    text = subject.text
    chat, reply = run.value("generation_chat_text"), run.value("generation_reply_text")
    instruction = chat.removeprefix(text.header).removesuffix(text.tail)
    run.equal("generation_chat_text", text.header + instruction + text.tail, chat)
    run.equal("gen.prompt_ids", [text.drawing_ids(instruction, reply)], run.tensor("gen.prompt_ids").tolist())


def _replay_prompt(run: ParityRun, subject: Subject, prompts: Prefilled) -> None:
    model = subject.model
    condition = start_condition(model, 1, 1)
    run.close("gen.cond_BD", condition.vector, run.tensor("gen.cond_BD"), HIDDEN)
    run.close("gen.cond_ada", condition.modulation, run.tensor("gen.cond_ada"), HIDDEN)
    first = model.projector_in(first_cells(model, condition))[:, 0]
    run.close("gen.first_llm_input", first, run.tensor("gen.first_llm_input"), HIDDEN)
    hidden = run.tensor(name := run.names("gen.prefill_hidden_tail")[0])
    run.close(name, prompts.hidden[:, -hidden.shape[1] :], hidden, HIDDEN)
    rows = context_rows(model, prompts)[0]
    expected = run.tensor(name := run.names("gen.ca_kv_cond_tail")[0])
    run.close(name, rows[-len(expected) :], expected, HIDDEN)
    run.equal("gen.ca_cu_seqlens", [0, len(rows), 2 * len(rows)], run.tensor("gen.ca_cu_seqlens").tolist())


def _replay_scales(run: ParityRun, subject: Subject, prompts: Prefilled, plan: Schedule) -> Tensor:
    """The scale loop on the recorded bits; at each scale the seeded draw must give those same bits."""
    stream = torch.Generator().manual_seed(run.value("gen_seed"))
    top_k, top_p = run.value("gen_top_k"), run.value("gen_top_p")

    def recorded(scale: int, logits: Tensor) -> Tensor:
        bits = run.tensor(f"gen.s{scale}.bits")[None]
        run.equal(f"gen.s{scale}.bits drawn", draw_bits(filtered_logits(logits, top_k, top_p), [stream]), bits)
        return bits

    guidance, tau = run.value("gen_cfg_list"), run.value("gen_tau_list")
    steps = list(draw(subject.model, prompts, [0], plan, guidance, tau, recorded))
    for step in steps:
        _compare_step(run, step)
    _compare_logprobs(run, steps, plan, top_k, top_p)
    run.close("gen.summed_codes", steps[-1].latent, run.tensor("gen.summed_codes"), HIDDEN)
    return steps[-1].latent


def _compare_step(run: ParityRun, step: ScaleStep) -> None:
    values = {
        "llm_cond": (step.hidden[0], HIDDEN),
        "llm_uncond": (step.hidden[-1], HIDDEN),
        "head_logits": (step.logits.flatten(-2), HIDDEN),
        "guided_logits": (step.guided[0], GUIDED),
    }
    for kind, (actual, tolerance) in values.items():
        name = f"gen.s{step.scale}.{kind}"
        if name in run.names(name):
            run.close(name, actual, run.tensor(name), tolerance)


def _compare_logprobs(run: ParityRun, steps: list[ScaleStep], plan: Schedule, top_k: int, top_p: float) -> None:
    recorded = run.value("tf_sampled")
    guided = torch.cat([step.guided for step in steps], dim=1)
    bits = torch.cat([step.bits for step in steps], dim=1)
    for kind, logits in (("unfiltered", guided), ("filtered", filtered_logits(guided, top_k, top_p))):
        total = bit_scores(logits.double(), bits, plan).logprobs.double().sum()
        expected = recorded[f"sum_bit_logprob_under_guided_{kind}"]
        run.close(f"tf_sampled.sum_bit_logprob_under_guided_{kind}", total, expected, RELATIVE * abs(expected))


def _replay_decoding(run: ParityRun, subject: Subject, latent: Tensor) -> None:
    pixels = subject.model.vae.decode(latent)[0]
    top, left = run.value("gen_decoded_crop_origin_yx")
    for name in run.names("gen.decoded_"):
        kind, number = re.fullmatch(r"gen\.decoded_([a-z]+)(\d+)", name).groups()  # type: ignore[union-attr]
        size = int(number)
        part = pixels[:, ::size, ::size] if kind == "stride" else pixels[:, top : top + size, left : left + size]
        run.close(name, part, run.tensor(name), DECODED)
    statistics = torch.stack((pixels.mean((1, 2)), pixels.std((1, 2))), dim=1)
    run.close("gen_decoded_mean_std", statistics, torch.tensor(run.value("gen_decoded_mean_std")), DECODED)
    image = to_images(pixels[None])[0]
    run.equal("gen_image_u8_bgr_shape", [image.height, image.width, 3], run.value("gen_image_u8_bgr_shape"))
