"""Teach the tiny random checkpoint a handful of sentences.

Whole training runs need questions that parse and answers that sometimes agree, which random weights never give.
"""

from __future__ import annotations

import random
import shutil
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
from asg_janus.weights_map import load_text
from PIL import Image
from transformers import PreTrainedTokenizerBase

from asg_core.backbones.interface import Role, TextRequest, TextSample
from asg_core.method.prompts import CAPTION_PROMPT, FRAMINGS, QUESTION_PROMPT, SPEC_PROMPT, frame
from asg_core.models.decoding import token_logits

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


def teach(checkpoint: Path, directory: Path, steps: int = 120) -> Path:
    """Train the language model of ``checkpoint`` on the lessons and write the result into ``directory``."""
    text = load_text(checkpoint, "cpu", torch.float32)
    parameters = [*text.decoder.parameters(), *text.model.lm_head.parameters()]
    optimizer = torch.optim.AdamW([p.requires_grad_() for p in parameters], lr=4e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    dice = random.Random(0)
    colours = [tuple(dice.randrange(256) for _ in range(3)) for _ in range(8)]
    images = [Image.new("RGB", (32, 32), colour) for colour in colours]
    for step in range(steps):
        chosen = [*dice.sample(LESSONS, 6), LESSONS[step % 2]]
        samples = [
            _lesson(text.tokenizer, prompt, dice.choice(answers), dice.choice(images)) for prompt, answers in chosen
        ]
        scores = token_logits(text, samples, _NoAdapters(), None)
        loss = -torch.cat([score.logprobs for score in scores]).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
    shutil.copytree(checkpoint, directory)
    text.model.save_pretrained(directory)
    return directory


def _lesson(tokenizer: PreTrainedTokenizerBase, prompt: str, answer: str, image: Image.Image) -> TextSample:
    ids = (*tokenizer(answer, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id)
    filler = (0.0,) * len(ids)
    return TextSample(TextRequest(prompt, image, 0), "", ids, ("",) * len(ids), filler, filler, "stop", 1.0)
