"""Understanding cases: preprocessing, vision, positions, hidden states, greedy decoding, padding, log-probs."""

from __future__ import annotations

import torch
from PIL.Image import Image
from torch import Tensor

from asg_core.backbones.interface import TextRequest, TextSample
from asg_core.backbones.manifest import LoraSettings
from asg_core.models.decoding import Segment, join_segments, token_logits
from asg_core.models.lora import RoleAdapters
from asg_core.testing import ParityRun
from asg_vargpt.parity.setup import HIDDEN, Subject, compare_norms, gradients, picture
from asg_vargpt.processing import patches_of
from asg_vargpt.text import TAIL, VargptText


def replay(run: ParityRun, subject: Subject) -> None:
    """All ``pre``, ``und``, ``und2`` and ``lp`` cases."""
    image = picture(run, "image.png")
    with run.case("pre"):
        patches, grids = patches_of(subject.text.processor, [image])
        run.equal("pre.image_grid_thw", grids, run.tensor("pre.image_grid_thw"))
        run.close("pre.pixel_values", patches, run.tensor("pre.pixel_values"), 0.0)
    with run.case("und"):
        _replay_prompt(run, subject.text, image)
    with run.case("und greedy"):
        request = _request(subject.text, run.tensor("und.input_ids")[0], image)
        _replay_greedy(run, subject.text, "und", [request])
    with run.case("und2"):
        _replay_padded(run, subject.text, [image, picture(run, "image2.png")])
    with run.case("lp"):
        _replay_logprobs(run, subject, image)


def _request(text: VargptText, ids: Tensor, image: Image) -> TextRequest:
    """The request whose prompt tokenises to recorded ids (n,)."""
    closing = text.tokenizer.convert_tokens_to_ids("<|vision_end|>")
    start = int((ids == closing).nonzero()[-1]) + 1
    tail = len(text.tokenizer(TAIL, add_special_tokens=False)["input_ids"])
    return TextRequest(str(text.tokenizer.decode(ids[start : len(ids) - tail].tolist())), image, seed=0)


def _ids(text: VargptText, request: TextRequest, cells: int) -> list[int]:
    """Token ids of a request, with one image token per cell."""
    chat = f"{text.header}<|vision_start|>{'<|image_pad|>' * cells}<|vision_end|>{request.prompt}{text.tail}"
    return list(text.tokenizer(chat, add_special_tokens=False)["input_ids"])


def _segment(text: VargptText, request: TextRequest) -> Segment:
    return join_segments([*text.prefixes([request.image]), text.prompt(request.prompt)])


def _hidden(text: VargptText, segment: Segment, positions: Tensor) -> Tensor:
    size = len(segment.embeds)
    mask = torch.ones(size, size, dtype=torch.bool).tril()[None, None]
    return text.forward(segment.embeds[None], mask, positions[:, None], text.new_cache())[0]


@torch.no_grad()
def _replay_prompt(run: ParityRun, text: VargptText, image: Image) -> None:
    ids = run.tensor("und.input_ids")
    request = _request(text, ids[0], image)
    features, _ = text.encode_images([image])[0]
    run.close("und.vision_embeds", features, run.tensor("und.vision_embeds"), HIDDEN)
    run.equal("und.input_ids", _ids(text, request, len(features)), ids[0].tolist())
    chat = f"{text.header}<|vision_start|><|image_pad|><|vision_end|>{request.prompt}{text.tail}"
    run.equal("understanding_chat_text", chat, run.value("understanding_chat_text"))
    segment = _segment(text, request)
    run.equal("und.position_ids", segment.positions[:, None], run.tensor("und.position_ids"))
    delta = torch.tensor([[segment.advance - len(segment.embeds)]])
    run.equal("und.rope_deltas", delta, run.tensor("und.rope_deltas"))
    tail = next(name for name in run.names("und.last_hidden_state_tail"))
    expected = run.tensor(tail)
    run.close(tail, _hidden(text, segment, segment.positions)[None, -expected.shape[1] :], expected, HIDDEN)


def _replay_greedy(run: ParityRun, text: VargptText, prefix: str, requests: list[TextRequest]) -> None:
    """Greedy ids and step logits on the shared decoding, teacher-forced with the recorded ids."""
    ids = run.tensor(f"{prefix}.greedy_ids")
    nothing = (0.0,) * ids.shape[1]
    samples = [
        TextSample(request, "", tuple(row.tolist()), ("",) * len(row), nothing, nothing, "length", 1.0)
        for request, row in zip(requests, ids, strict=True)
    ]
    with torch.no_grad():
        scores = token_logits(text, samples, RoleAdapters({}, {}, LoraSettings()), None, logits=True)
    logits = torch.stack([score.logits for score in scores if score.logits is not None])
    expected = run.tensor(f"{prefix}.step_logits")
    run.close(f"{prefix}.step_logits", logits[:, : expected.shape[1]], expected, HIDDEN)
    run.equal(f"{prefix}.greedy_ids", logits.argmax(-1), ids)


def _replay_padded(run: ParityRun, text: VargptText, images: list[Image]) -> None:
    mask, ids = run.tensor("und2.attention_mask").bool(), run.tensor("und2.input_ids")
    run.equal("und2_left_pad_lengths", (~mask).sum(1).tolist(), run.value("und2_left_pad_lengths"))
    _, grids = patches_of(text.processor, images)
    run.equal("und2.image_grid_thw", grids, run.tensor("und2.image_grid_thw"))
    requests = [_request(text, row[keep], image) for row, keep, image in zip(ids, mask, images, strict=True)]
    merge = int(text.model.visual.spatial_merge_size) ** 2
    for i, (request, cells) in enumerate(zip(requests, (grids.prod(1) // merge).tolist(), strict=True)):
        run.equal(f"und2.input_ids {i}", _ids(text, request, cells), ids[i][mask[i]].tolist())
    _replay_greedy(run, text, "und2", requests)


def _replay_logprobs(run: ParityRun, subject: Subject, image: Image) -> None:
    """Log-probs of a completion after the understanding prompt, and gradient norms through vision and language."""
    text, model = subject.text, subject.model
    completion = run.tensor("lp.completion_ids")[0]
    request = _request(text, run.tensor("und.input_ids")[0], image)
    for kind in ("mrope", "arange"):
        norms = run.value(f"lp_grad_norms_{kind}")
        with gradients(subject, list(norms)) as own:
            shown = text._shown(*text.encode_images([image])[0])
            segment = join_segments(
                [
                    text.text_segment(text.header, special=True),
                    shown,
                    text.prompt(request.prompt),
                    text.token_segment(completion.tolist()),
                ]
            )
            positions = segment.positions
            if kind == "arange":
                positions = torch.arange(positions.shape[1]).expand_as(positions)
            hidden = _hidden(text, segment, positions)
            rows = hidden[-len(completion) - 1 : -1]
            logprobs = model.qwen.lm_head(rows).float().log_softmax(-1).gather(-1, completion[:, None]).T
            name = f"lp.token_logprobs_{kind}"
            run.close(name, logprobs, run.tensor(name), HIDDEN)
            (-logprobs.sum()).backward()
            compare_norms(run, f"lp_grad_norms_{kind}", norms, own)
