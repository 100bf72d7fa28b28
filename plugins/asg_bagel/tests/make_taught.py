"""How ``fixtures/taught.safetensors`` was made: the recorded random model, taught a handful of sentences.

Whole training runs need questions that parse and answers that sometimes agree, which random weights never give. The
file holds the understanding expert in bfloat16; ``bagel_fixtures.taught_checkpoint`` lays it over the recorded one.

    python tests/make_taught.py      about two minutes
"""

from __future__ import annotations

import random
from contextlib import AbstractContextManager, nullcontext

import torch
from PIL import Image
from safetensors.torch import save_file

from asg_bagel.processing import BagelTokenizer, ResizeRule
from asg_bagel.text import BagelText, SegmentBuilder
from asg_bagel.weights_map import load_model
from asg_core.backbones.interface import Role, TextRequest, TextSample
from asg_core.method.prompts import CAPTION_PROMPT, FRAMINGS, QUESTION_PROMPT, SPEC_PROMPT, frame
from asg_core.models.decoding import token_logits

from bagel_fixtures import GOLDEN, TAUGHT

ANSWERS = {"What is the cat?": ("red", "red", "hat"), "Is the cat red?": ("yes", "yes", "no")}
SPEC = "Prompt: the red cat Q: What is the cat? A: red Q: Is the cat red? A: yes"
LESSONS = [
    (QUESTION_PROMPT, (*ANSWERS, "red")),
    (SPEC_PROMPT, (SPEC,)),
    (CAPTION_PROMPT, ("the red cat", "the cat")),
    *((frame(question, framing), answers) for question, answers in ANSWERS.items() for framing in FRAMINGS),
]


class _NoAdapters:
    def use(self, role: Role | None) -> AbstractContextManager[None]:
        return nullcontext()


def teach(steps: int = 700) -> None:
    """Write ``TAUGHT``."""
    torch.manual_seed(0)
    model, _ = load_model(GOLDEN / "checkpoint")
    tokenizer = BagelTokenizer(GOLDEN / "checkpoint")
    text = BagelText(SegmentBuilder(model, tokenizer, ResizeRule(56, 56, 14)))
    expert = {name: p for name, p in model.language_model.named_parameters() if "_moe_gen" not in name}
    optimizer = torch.optim.AdamW([p.requires_grad_() for p in expert.values()], lr=2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    dice = random.Random(0)
    images = [
        Image.new("RGB", (56, 56), (dice.randrange(256), dice.randrange(256), dice.randrange(256))) for _ in range(8)
    ]
    for step in range(steps):
        chosen = [*dice.sample(LESSONS, 4), LESSONS[step % 2]]
        samples = [_lesson(tokenizer, *lesson, dice.choice(images), dice) for lesson in chosen]
        scores = token_logits(text, samples, _NoAdapters(), None)
        loss = -torch.cat([score.logprobs for score in scores]).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(expert.values(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 99:
            print(step + 1, float(loss.detach()))
    save_file({f"language_model.{n}": p.detach().bfloat16().contiguous() for n, p in expert.items()}, TAUGHT)


def _lesson(
    tokenizer: BagelTokenizer, prompt: str, answers: tuple[str, ...], image: Image.Image, dice: random.Random
) -> TextSample:
    ids = (*tokenizer.encode(dice.choice(answers)), tokenizer.eos)
    filler = (0.0,) * len(ids)
    return TextSample(TextRequest(prompt, image, 0), "", ids, ("",) * len(ids), filler, filler, "stop", 1.0)


if __name__ == "__main__":
    torch.set_num_threads(1)
    teach()
