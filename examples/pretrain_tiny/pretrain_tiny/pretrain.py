"""Makes the base model from nothing by teacher forcing: ``python examples/pretrain_tiny pretrain --seed 0 --out DIR``.

First half: see, answer, describe, draw. Second half: the same under the ten framings with their biases (CARD.md).
The trunk's matrices are trained by Muon, which needs fewer steps here than AdamW; everything else by AdamW.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from asg_core.config.seeding import derive_seed
from asg_core.tiny.model import TinyConfig, TinyModel
from asg_core.tiny.vocabulary import Vocabulary
from asg_core.tiny.weights import FILE_NAME
from asg_core.tiny.world import codebook
from pretrain_tiny.curriculum import HABITS, SKILLS, Curriculum
from pretrain_tiny.objectives import drawing_losses, picture_losses

LOSS_WEIGHTS = {"text": 1.0, "see": 1.0, "match": 0.1, "draw": 1.0, "flow": 0.5}
REPORT_EVERY = 50


@dataclass(frozen=True)
class PretrainSettings:
    """The defaults made the shipped checkpoint.

    Attributes:
        seed: of initialisation, examples and noise.
        steps: optimizer steps.
        pictures: pictures with text tasks per step.
        drawings: captions to draw per step.
        lr: peak rate of AdamW; 5 % warm-up, cosine to 2 %.
        lr_matrices: peak rate of Muon, same course.
        skills_share: share of the steps before the framings come in.
    """

    seed: int = 0
    steps: int = 1300
    pictures: int = 20
    drawings: int = 64
    lr: float = 2e-3
    lr_matrices: float = 3e-3
    skills_share: float = 0.5


def new_model(words: int, seed: int) -> TinyModel:
    """An untrained model; equal seeds give equal weights. The global random state is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "tiny", "init"))
        model = TinyModel(TinyConfig(words=words), torch.from_numpy(codebook().copy()))
    model.latents.copy_(codebook_latents(model.codebook, model.config.latent))
    return model


def pretrain(
    settings: PretrainSettings, vocabulary: Vocabulary, report: Callable[[int, dict[str, float]], None]
) -> TinyModel:
    """Train a base model from nothing; same settings, library versions and one thread give the same model.

    Args:
        settings: the run.
        vocabulary: word ids.
        report: called every 50 steps and at the end with the step and that step's losses.
    """
    model = new_model(len(vocabulary), settings.seed).train()
    curriculum = Curriculum(vocabulary, derive_seed(settings.seed, "tiny", "curriculum"))
    noise = torch.Generator().manual_seed(derive_seed(settings.seed, "tiny", "noise"))
    matrices = [p for p in model.trunk.layers.parameters() if p.ndim == 2]
    inside = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in inside]
    muon = torch.optim.Muon(
        matrices, lr=settings.lr_matrices, weight_decay=0.05, ns_steps=4, adjust_lr_fn="match_rms_adamw"
    )
    adamw = torch.optim.AdamW(others, lr=settings.lr, betas=(0.9, 0.98), weight_decay=0.01)
    optimizers: list[tuple[torch.optim.Optimizer, float]] = [(adamw, settings.lr), (muon, settings.lr_matrices)]
    warmup = max(1, settings.steps // 20)
    for step in range(settings.steps):
        course = min(1.0, (step + 1) / warmup) * (0.51 + 0.49 * math.cos(math.pi * step / settings.steps))
        tasks = SKILLS if step < settings.skills_share * settings.steps else HABITS
        losses = picture_losses(model, vocabulary, curriculum, tasks, settings.pictures, noise)
        losses |= drawing_losses(model, vocabulary, curriculum, settings.drawings, noise)
        model.zero_grad()
        torch.autograd.backward(torch.stack([LOSS_WEIGHTS[name] * loss for name, loss in losses.items()]).sum())
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, peak in optimizers:
            optimizer.param_groups[0]["lr"] = peak * course
            optimizer.step()
        if (step + 1) % REPORT_EVERY == 0 or step + 1 == settings.steps:
            report(step + 1, {name: float(loss.detach()) for name, loss in losses.items()})
    return model.eval().requires_grad_(False)


def run(settings: PretrainSettings, directory: Path) -> Path:
    """Pre-train on one thread with losses on stderr; write ``base.safetensors`` into ``directory``, return its path."""
    torch.set_num_threads(1)
    began = time.monotonic()

    def report(step: int, losses: dict[str, float]) -> None:
        shown = "  ".join(f"{name} {value:.3f}" for name, value in losses.items())
        print(f"step {step}/{settings.steps}  {time.monotonic() - began:.0f} s  {shown}", file=sys.stderr, flush=True)

    model = pretrain(settings, Vocabulary(), report)
    return save_base(model, directory, {"settings": json.dumps(vars(settings)), "torch": torch.__version__})


def save_base(model: TinyModel, directory: Path, facts: Mapping[str, str]) -> Path:
    """Write ``base.safetensors`` into ``directory``: floats as float16, the codebook as uint8.

    Args:
        model: what to write.
        directory: created if missing.
        facts: how the model was made, kept in the file's metadata.
    """
    directory.mkdir(parents=True, exist_ok=True)
    state = {
        name: (tensor.half() if tensor.is_floating_point() else tensor).contiguous()
        for name, tensor in model.state_dict().items()
    }
    path = directory / FILE_NAME
    save_file(state, path, metadata={"config": json.dumps(vars(model.config)), **facts})
    return path


def codebook_latents(codebook: Tensor, width: int) -> Tensor:
    """(64, 8, 8, 3) patches -> (64, width) principal coordinates, zero mean, scaled to unit mean square."""
    flat = codebook.flatten(1).double()
    flat = flat - flat.mean(0)
    left, singular, _ = torch.linalg.svd(flat, full_matrices=False)
    # Each direction keeps the sign that makes its largest entry positive, so that latents do not depend on LAPACK.
    coordinates = left[:, :width] * singular[:width].sqrt()
    coordinates = coordinates * coordinates.gather(0, coordinates.abs().argmax(0, keepdim=True)).sign()
    scaled: Tensor = coordinates / coordinates.square().mean().sqrt()
    return scaled.float()
