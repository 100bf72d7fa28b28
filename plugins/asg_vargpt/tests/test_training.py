"""A whole training run on a tiny checkpoint of the family.

Random weights never ask a question that parses, so the recorded model is first taught a handful of sentences.
"""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from asg_vargpt.backbone import VargptBackbone
from asg_vargpt.processing import STOP, image_processor, load_tokenizer
from asg_vargpt.text import VargptText
from asg_vargpt.weights_map import load_model, slots
from PIL import Image
from safetensors.torch import load_file, save_file

from asg_core.backbones.interface import Role, TextRequest, TextSample
from asg_core.backbones.manifest import LoraSettings
from asg_core.config.schema import RunConfig
from asg_core.method.prompts import CAPTION_PROMPT, FRAMINGS, QUESTION_PROMPT, SPEC_PROMPT, frame
from asg_core.models.decoding import token_logits
from asg_core.models.lora import RoleAdapters
from asg_core.training.trainer import Trainer

ANSWERS = {"Is it a cat?": ("yes", "yes", "no"), "What is it in?": ("red", "red", "tin")}
SPEC = "Prompt: a red cat Q: Is it a cat? A: yes Q: What is it in? A: red"
LESSONS: list[tuple[str, tuple[str, ...]]] = [
    (QUESTION_PROMPT, (*ANSWERS, "red red")),
    (SPEC_PROMPT, (SPEC,)),
    (CAPTION_PROMPT, ("a red cat",)),
    *((frame(question, framing), answers) for question, answers in ANSWERS.items() for framing in FRAMINGS[:3]),
]


@pytest.fixture(scope="module")
def taught(golden: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A float32 checkpoint in the released layout that asks, answers, captions and specifies."""
    source, directory = golden / "ckpt", tmp_path_factory.mktemp("taught") / "ckpt"
    model, _ = load_model(source)
    tokenizer = load_tokenizer(source)
    stop = int(tokenizer.convert_tokens_to_ids(STOP))
    text = VargptText(model, tokenizer, image_processor(3136, 3136), {stop})
    trained = [*model.language_model.parameters(), *model.qwen.lm_head.parameters()]
    for parameter in trained:
        parameter.requires_grad_(True)
    optimizer = torch.optim.AdamW(trained, lr=8e-3)
    dice, nobody = random.Random(0), RoleAdapters({}, {}, LoraSettings())
    image = Image.new("RGB", (56, 56), (200, 30, 30))
    for _ in range(70):
        samples = []
        for prompt, replies in [*dice.sample(LESSONS[2:], 2), *LESSONS[:2]]:
            ids = (*tokenizer(dice.choice(replies), add_special_tokens=False)["input_ids"], stop)
            zeros = (0.0,) * len(ids)
            samples.append(
                TextSample(TextRequest(prompt, image, 0), "", ids, ("",) * len(ids), zeros, zeros, "stop", 1.0)
            )
        loss = -torch.cat([score.logprobs for score in token_logits(text, samples, nobody, None)]).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
    print(loss.item())
    assert loss.item() < 0.4
    shutil.copytree(source, directory)
    language = ("visual.", "model.", "lm_head.")
    own = {name: slot.tensor for name, slot in slots(model).items() if name.startswith(language)}
    for shard in directory.glob("*.safetensors"):
        tensors = {name: own[name].detach() if name in own else tensor for name, tensor in load_file(shard).items()}
        save_file(tensors, shard)
    return directory


@pytest.mark.slow
def test_two_understanding_and_two_generation_steps_move_all_adapters_and_nothing_else(
    taught: Path, load: Callable[..., VargptBackbone], tmp_path: Path
) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for seed in range(4):
        Image.new("RGB", (56, 56), (200, 30 + seed, 30)).save(images / f"{seed}.png")
    backbone = load(taught, min_pixels=3136, max_pixels=3136)
    before = {name: tensor.clone() for name, tensor in backbone.model.state_dict().items()}
    config = RunConfig.model_validate(
        {
            "backbone": "vargpt",
            "images": images,
            "out": tmp_path / "run",
            "steps": 4,
            "images_per_step": 3,
            "device": "cpu",
            "evaluate": False,
            "schedule": {"ratio": [1, 1]},
            "ask": {"questions_per_image": 4, "max_new_tokens": 16, "spec_max_new_tokens": 64},
            "solve": {"max_new_tokens": 6, "framings": 3, "min_agreement": 0.5, "caption_max_new_tokens": 12},
            "generate": {"prompts_per_step": 1, "candidates": 2, "update": "regression"},
            "optimizer": {"lr_proposer": 1e-3, "lr_solver": 1e-3, "lr_generator": 1e-3},
        }
    )
    summary = Trainer(config, backbone).run()
    assert summary.steps_done == 4
    lines = (tmp_path / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    assert [row["kind"] for row in rows] == ["understanding", "generation"] * 2
    assert all(row["nonfinite"] == 0 for row in rows)
    moved = {name for name, tensor in backbone.model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert moved
    assert all("lora_" in name for name in moved)
    assert {role for role in Role if any(f".{role.value}." in name for name in moved)} == set(Role)
