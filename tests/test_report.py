"""The report of a run: self-contained, escaped, complete, bounded, and tolerant of half-written folders."""

from __future__ import annotations

import base64
import json
import math
import random
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image, ImageDraw

from asg_core.errors import RunFolderError
from asg_core.prompts import FRAMINGS
from asg_core.report import render_report
from asg_core.report.gallery import GENERATION_ITEMS, REPORT_BYTES, UNDERSTANDING_ITEMS
from asg_core.report.plots import smooth, thin

# --- a run folder as training writes it -----------------------------------------------------------------------------

COLOURS = {"red": "#d43a2f", "blue": "#2f62d4", "green": "#2f9e44", "yellow": "#e8c41c", "purple": "#8e44ad"}
SHAPES = ("circle", "square", "triangle")
ROWS = [
    ("understanding, canonical framing", "all", 800, 0.604, 0.7215, 0.1175, 0.089, 0.146, 2e-12),
    ("understanding, canonical framing", "colour", 160, 0.71, 0.83, 0.12, 0.06, 0.18, 0.0004),
    ("understanding, canonical framing", "count", 160, 0.52, 0.55, 0.03, -0.03, 0.09, 0.31),
    ("understanding, canonical framing", "position", 160, 0.48, 0.46, -0.02, -0.08, 0.04, 0.52),
    ("understanding, mean of framings", "all", 800, 0.558, 0.701, 0.143, 0.12, 0.166, 1e-15),
    ("generation", "all", 360, 0.481, 0.583, 0.102, 0.055, 0.149, 0.00008),
    ("generation", "single object", 60, 0.82, 0.9, 0.08, 0.01, 0.15, 0.04),
    ("generation", "position", 60, 0.21, 0.12, -0.09, -0.16, -0.02, 0.013),
]
ROW_KEYS = ("section", "category", "n", "before", "after", "difference", "ci_low", "ci_high", "p_value")


def scene(rng: random.Random, side: int) -> Image.Image:
    """Coloured shapes; large ones carry a gradient and noise, as a photograph would."""
    image = Image.new("RGB", (side, side * 3 // 4 if side > 64 else side), "#202225")
    if side > 64:
        height = image.height
        y, x = np.mgrid[0:height, 0:side]
        noise = np.random.default_rng(rng.randrange(2**31)).normal(0, 9, (height, side))
        layers = [120 + 90 * np.sin(x / 90 + 1) + noise, 130 + y / height * 80 + noise, 190 - y / height * 120 + noise]
        image = Image.fromarray(np.clip(np.stack(layers, -1), 0, 255).astype("uint8"))
    draw = ImageDraw.Draw(image)
    for _ in range(rng.randint(1, 3)):
        size = rng.choice((side // 5, side // 3))
        left, top = rng.randrange(side - size), rng.randrange(image.height - size)
        box, fill = (left, top, left + size, top + size), rng.choice(list(COLOURS.values()))
        match rng.choice(SHAPES):
            case "circle":
                draw.ellipse(box, fill=fill)
            case "square":
                draw.rectangle(box, fill=fill)
            case _:
                draw.polygon([(left, top + size), (left + size, top + size), (left + size / 2, top)], fill=fill)
    return image


def metrics_record(step: int, steps: int, rng: random.Random) -> dict[str, Any]:
    progress, kind = step / steps, "understanding" if step % 5 in (1, 2, 3) else "generation"
    noise = lambda width: rng.gauss(0, width)  # noqa: E731
    common = {"step": step, "kind": kind, "seconds": 1.1 + abs(noise(0.1)), "images": 16, "nonfinite": int(step == 9)}
    common["alarms"] = ["constant_answers"] if 0.5 < progress < 0.53 else []
    if kind == "understanding":
        h = 0.95 - 0.35 * progress + noise(0.06)
        return common | {
            "questions": 44, "gate_failures": 4, "unsolvable": rng.randrange(4), "learned_questions": 20 + int(10 * progress),
            "reward_proposer": 0.45 + 0.15 * progress + noise(0.05), "reward_solver": 0.2 + 0.1 * progress + noise(0.04),
            "h_sc": h, "majority_share": 0.8 - 0.3 * h + 0.15, "ste_raw": 1.4 - 0.4 * progress + noise(0.1),
            "ste_percentile": 0.5 - 0.08 * progress + noise(0.05), "distinct_question_share": 0.7 - 0.2 * progress + noise(0.03),
            "constant_answer_share": 0.2 + noise(0.02), "zero_variance_share": 0.15 + abs(noise(0.04)),
            "loss_proposer": noise(0.02), "loss_solver": noise(0.03), "kl_proposer": 1e-5 + 0.03 * progress**2,
            "kl_solver": 1e-5 + 0.05 * progress, "beta_proposer": 0.01 * 0.98**step, "beta_solver": 0.01 * 1.03**step,
            "grad_norm_proposer": 0.5 + abs(noise(0.2)), "grad_norm_solver": 0.9 + abs(noise(0.5)),
        }  # fmt: skip
    return common | {
        "specs": 8, "skipped": rng.randrange(2), "spec_quality": 0.82 + noise(0.04), "reward_generator": 0.4 + 0.18 * progress + noise(0.04),
        "s_fid": 0.42 + 0.2 * progress + noise(0.05), "s_cyc": 0.6 + noise(0.03), "s_div": 0.3 - 0.1 * progress + noise(0.02),
        "s_ctr": 0.12 - 0.05 * progress + abs(noise(0.01)), "zero_variance_share": 0.3 + noise(0.05),
        "loss_generator": 0.3 + noise(0.03), "penalty_generator": 0.02 * progress, "kl_generator": None,
        "grad_norm_generator": 0.3 + abs(noise(0.1)),
    }  # fmt: skip


def question_item(rng: random.Random, text: str, answers: list[str], gate: str | None = None) -> dict[str, Any]:
    if gate:
        return {"completion": text, "question": None, "gate": gate, "answers": [], "votes": {}, "majority": None, "reward": -0.2,
                "reward_reason": "gate", "advantage": -1.1, "learned": False}  # fmt: skip
    votes = {a: answers.count(a) / len(answers) for a in sorted(set(answers), key=answers.count, reverse=True)}
    shares = sorted(votes.values(), reverse=True)
    f = shares[0]
    return {
        "completion": text, "question": text, "gate": None, "votes": votes, "majority": next(iter(votes)),
        "answers": [
            {"framing": framing, "text": answer.capitalize() + ".", "label": answer, "logprob": -rng.random() * 3,
             "reward": 0.5236 if answer == next(iter(votes)) else -0.08, "advantage": 0.35 if answer == next(iter(votes)) else -0.4}
            for framing, answer in zip(FRAMINGS, answers, strict=True)
        ],
        "tied": False, "f": f, "margin": f - (shares[1] if len(shares) > 1 else 0), "h_sc": -sum(p * math.log(p) for p in shares),
        "greedy": answers[0], "token_entropies": [round(rng.random() * 2, 3) for _ in range(2)], "ste_raw": 1.21,
        "ste_percentile": 0.61, "reward": 0.66, "reward_reason": "scored", "advantage": 0.9, "learned": 0.5 <= f < 1,
    }  # fmt: skip


def write_samples(run: Path, step: int, kind: str, rng: random.Random, side: int, items: int = 2) -> None:
    folder = run / "samples" / f"step-{step:06d}"
    folder.mkdir(parents=True)
    written: list[dict[str, Any]] = []
    for i in range(items):
        source = f"{folder.name}/{i:02d}.png"
        scene(rng, side).save(folder / f"{i:02d}.png")
        if kind == "understanding":
            a, b, c = rng.sample(list(COLOURS), 3)
            questions = [
                question_item(rng, f"What colour is the {rng.choice(SHAPES)}?", [a] * 4 + [b] * 2 + [c]),
                question_item(rng, "How many objects are there in the picture?", ["2"] * 6 + ["3"]),
                question_item(rng, "the the the colour", [], gate="no question mark"),
            ]
            written.append({"image": source, "source": f"images/{rng.randrange(9999):05d}.png", "questions": questions})
            continue
        candidates = []
        for c in range(3):
            scene(rng, side).save(folder / f"{i:02d}-{c}.png")
            candidates.append({
                "image": f"{folder.name}/{i:02d}-{c}.png", "seed": rng.randrange(2**62), "caption": "a red circle left of a blue square",
                "reward": round(0.3 + 0.5 * rng.random(), 4), "s_fid": c / 2, "s_cyc": 0.61, "s_div": 0.2, "s_ctr": 0.0, "signal": (c - 1) * 0.4,
                "answers": [{"question": "What colour is the circle?", "answers": ["red", "red", "blue"], "majority": "red"},
                            {"question": "Is there a square?", "answers": ["yes", "yes", "yes"], "majority": "yes"}],
            })  # fmt: skip
        written.append({
            "image": source, "source": "images/00017.png", "tries": 1, "skipped": False, "quality": 0.87,
            "prompt": "a small red circle to the left of a large blue square",
            "questions": [
                {"question": "What colour is the circle?", "expected": "red", "answers": ["red"] * 3, "reference": "red", "kept": True},
                {"question": "Is there a square?", "expected": "yes", "answers": ["yes", "yes", "no"], "reference": "yes", "kept": True},
                {"question": "Which is larger?", "expected": "square", "answers": ["circle", "square", "both"], "reference": None, "kept": False},
            ],
            "candidates": candidates,
        })  # fmt: skip
    (run / "samples" / f"step-{step:06d}.json").write_text(json.dumps({"step": step, "kind": kind, "items": written}))


def build_run(run: Path, steps: int = 60, *, side: int = 32, sample_every: int = 5, seed: int = 0) -> Path:
    """A finished run with everything in it."""
    rng = random.Random(seed)
    run.mkdir(parents=True)
    config = {"backbone": "tiny", "steps": steps, "seed": seed, "images_per_step": 16, "optimiser": {"lr_solver": 1e-3}}
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    records = [metrics_record(step, steps, rng) for step in range(1, steps + 1)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    for count, record in enumerate(records[::sample_every]):
        kind = "understanding" if count % 2 == 0 else "generation"
        write_samples(run, record["step"], kind, rng, side)
    quarantine = [{"image": "images/broken.png", "reason": "truncated file"}, {"image": "images/a.gif", "reason": "animated"}]
    (run / "quarantine.jsonl").write_text("".join(json.dumps(q) + "\n" for q in quarantine))
    summary = {
        "backbone": "tiny", "steps_done": steps, "seconds": 252.4, "interrupted": False, "asg_core": "0.1.0", "torch": "2.13.0",
        "transformers": "5.23.0", "peft": "0.21.2", "peak_memory_bytes": 731_000_000,
        "evaluation": [dict(zip(ROW_KEYS, row, strict=True)) for row in ROWS],
    }  # fmt: skip
    (run / "summary.json").write_text(json.dumps(summary))
    return run
