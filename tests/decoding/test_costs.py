"""What an understanding step may cost: counted on a tiny Qwen2.5-VL, since counts do not depend on the machine."""

from __future__ import annotations

import pytest
import torch

from asg_core.decoding import PrefixCache, sample_text, token_logits
from asg_core.prompts import CANONICAL_FRAMING, FRAMINGS, QUESTION_PROMPT, frame
from asg_core.roles import Role, TextRequest, TextSampling

ASKED, ANSWERED = 16, 6
QUESTIONS = ["What colour is the large bird?", "How many cups are there?", "Is the door open?"]


def tokenlike(text: str) -> str:
    """As many bytes as ``text`` has tokens with a real vocabulary, about one per four characters."""
    return text[::4]


def understanding_step(rig, images, kept):
    """Ask 3 questions per image, answer each under 7 framings and once greedily, score both roles against the base."""
    model, adapters = rig.model, rig.adapters
    with adapters.use(Role.PROPOSER):
        asked = [
            TextRequest(tokenlike(QUESTION_PROMPT), image, 3 * i + k)
            for i, image in enumerate(images)
            for k in range(3)
        ]
        questions = sample_text(model, asked, TextSampling(ASKED), prefixes=kept)
    with adapters.use(Role.SOLVER):
        framed = [
            TextRequest(tokenlike(frame(q, f)), image, n)
            for image in images
            for q in QUESTIONS
            for n, f in enumerate(FRAMINGS)
        ]
        answers = sample_text(model, framed, TextSampling(ANSWERED), prefixes=kept)
        canonical = [
            TextRequest(tokenlike(frame(q, CANONICAL_FRAMING)), image, 0) for image in images for q in QUESTIONS
        ]
        greedy = sample_text(model, canonical, TextSampling(ANSWERED, 0.0), prefixes=kept)
    for role, samples in ((Role.PROPOSER, questions), (Role.SOLVER, answers)):
        scores = token_logits(model, samples, adapters, role, base=True, prefixes=kept)
        weights = list(adapters.parameters(role).values())
        torch.autograd.grad(sum(s.logprobs.sum() + s.kl.sum() for s in scores), weights)
    return questions, answers, greedy


def reference_tokens(rig, scored, sampled_only):
    """Language-model tokens when every generation and every score runs its own row: once sampled, twice scored."""
    total = 0
    for sample in [*scored * 3, *sampled_only]:
        prefix = rig.model.prefixes([sample.request.image])[0]
        total += len(prefix.embeds) + len(rig.model.prompt(sample.request.prompt).embeds) + len(sample.token_ids)
    return total


@pytest.mark.parametrize(("side", "vision_tokens", "limit"), [(224, 64, 0.48), (448, 256, 0.30)])
def test_an_understanding_step_keeps_its_budget(build_rig, make_picture, monkeypatch, side, vision_tokens, limit):
    rig = build_rig("qwen")
    images = [make_picture(1, side, side), make_picture(2, side, side)]
    blocks, shapes = [], []
    for block in rig.full.model.visual.blocks:
        block.register_forward_hook(lambda *_: blocks.append(1))
    prefix = len(rig.model.prefixes(images)[0].embeds)
    assert prefix > vision_tokens
    rig.model.features.clear()
    blocks.clear()
    forward = rig.model.forward
    monkeypatch.setattr(rig.model, "forward", lambda e, *rest: shapes.append(tuple(e.shape[:2])) or forward(e, *rest))
    questions, answers, greedy = understanding_step(rig, images, PrefixCache(rig.adapters.version))
    assert len(blocks) == len(rig.full.model.visual.blocks)
    assert [rows for rows, width in shapes if width == prefix] == [2] * 5
    assert len(shapes) <= ASKED + 2 * ANSWERED + 12
    ours = sum(rows * width for rows, width in shapes)
    monkeypatch.undo()
    assert ours <= limit * reference_tokens(rig, [*questions, *answers], greedy)
