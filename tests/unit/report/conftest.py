"""A run folder as training writes it: data with the shape and size of a real run, made without training."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image, ImageDraw

from asg_core.method.prompts import FRAMINGS

COLOURS = {"red": "#d43a2f", "blue": "#2f62d4", "green": "#2f9e44", "yellow": "#e8c41c", "purple": "#8e44ad"}
ROW_KEYS = ("section", "category", "n", "before", "after", "difference", "ci_low", "ci_high", "p_value")
ROWS = (
    ("understanding, canonical framing", "all", 800, 0.604, 0.7215, 0.1175, 0.089, 0.146, 2e-12),
    ("understanding, canonical framing", "colour", 160, 0.71, 0.83, 0.12, 0.06, 0.18, 0.0004),
    ("understanding, canonical framing", "count", 160, 0.52, 0.55, 0.03, -0.03, 0.09, 0.31),
    ("understanding, canonical framing", "position", 160, 0.48, 0.46, -0.02, -0.08, 0.04, 0.52),
    ("understanding, mean of framings", "all", 800, 0.558, 0.701, 0.143, 0.12, 0.166, 1e-15),
    ("generation", "all", 360, 0.481, 0.583, 0.102, 0.055, 0.149, 0.00008),
    ("generation", "single object", 60, 0.82, 0.9, 0.08, 0.01, 0.15, 0.04),
    ("generation", "position", 60, 0.21, 0.12, -0.09, -0.16, -0.02, 0.013),
)
# metric: (value at the first step, at the last step, noise)
ALWAYS = {"seconds": (1.2, 1.1, 0.05), "images": (16, 16, 0), "nonfinite": (0, 0, 0)}
UNDERSTANDING = {
    "questions": (44, 44, 0),
    "gate_failures": (4, 4, 0),
    "unsolvable": (2, 1, 0.5),
    "learned_questions": (20, 30, 1),
    "reward_proposer": (0.45, 0.6, 0.05),
    "reward_solver": (0.2, 0.3, 0.04),
    "h_sc": (0.95, 0.6, 0.06),
    "majority_share": (0.66, 0.78, 0.02),
    "ste_raw": (1.4, 1.0, 0.1),
    "ste_percentile": (0.5, 0.42, 0.05),
    "distinct_question_share": (0.7, 0.5, 0.03),
    "constant_answer_share": (0.2, 0.2, 0.02),
    "zero_variance_share": (0.15, 0.2, 0.04),
    "loss_proposer": (0, 0, 0.02),
    "loss_solver": (0, 0, 0.03),
    "kl_proposer": (1e-5, 0.03, 0),
    "kl_solver": (1e-5, 0.05, 0),
    "beta_proposer": (0.01, 0.001, 0),
    "beta_solver": (0.01, 0.3, 0),
    "grad_norm_proposer": (0.7, 0.7, 0.1),
    "grad_norm_solver": (1.4, 1.2, 0.2),
}
GENERATION = {
    "specs": (8, 8, 0),
    "skipped": (1, 0, 0),
    "spec_quality": (0.8, 0.85, 0.04),
    "reward_generator": (0.4, 0.58, 0.04),
    "s_fid": (0.42, 0.62, 0.05),
    "s_cyc": (0.6, 0.61, 0.03),
    "s_div": (0.3, 0.2, 0.02),
    "s_ctr": (0.12, 0.07, 0.01),
    "zero_variance_share": (0.3, 0.3, 0.05),
    "loss_generator": (0.3, 0.28, 0.03),
    "penalty_generator": (0, 0.02, 0),
    "grad_norm_generator": (0.35, 0.4, 0.05),
}


def scene(rng: random.Random, side: int) -> Image.Image:
    """Coloured shapes; images beyond 64 pixels have a gradient and noise behind them, as photographs would."""
    image = Image.new("RGB", (side, side), "#202225")
    if side > 64:
        height = side * 3 // 4
        y, x = np.mgrid[0:height, 0:side]
        noise = np.random.default_rng(rng.randrange(2**31)).normal(0, 9, (height, side))
        layers = [120 + 90 * np.sin(x / 90 + 1) + noise, 130 + y / height * 80 + noise, 190 - y / height * 120 + noise]
        image = Image.fromarray(np.clip(np.stack(layers, -1), 0, 255).astype("uint8"))
    draw = ImageDraw.Draw(image)
    for _ in range(rng.randint(1, 3)):
        size = rng.choice((side // 5, side // 3))
        left, top = rng.randrange(side - size), rng.randrange(image.height - size)
        shape = rng.choice((draw.ellipse, draw.rectangle))
        shape((left, top, left + size, top + size), fill=rng.choice(list(COLOURS.values())))
    return image


def metrics_record(step: int, steps: int, rng: random.Random) -> dict[str, Any]:
    """One line of metrics.jsonl, with alarms just after half of the run and one dropped value at step 9."""
    kind = "understanding" if step % 5 in (1, 2, 3) else "generation"
    record: dict[str, Any] = {"step": step, "kind": kind}
    for key, (first, last, noise) in (ALWAYS | (UNDERSTANDING if kind == "understanding" else GENERATION)).items():
        record[key] = first + (last - first) * step / steps + (rng.gauss(0, noise) if noise else 0)
    if kind == "generation":
        record["kl_generator"] = None
    record["nonfinite"] = int(step == 9)
    record["alarms"] = ["constant_answers"] if 0.5 < step / steps < 0.53 else []
    return record


def question(text: str, answers: list[str], rng: random.Random) -> dict[str, Any]:
    """An understanding sample's question with one answer per framing."""
    votes = {a: answers.count(a) / len(answers) for a in sorted(set(answers), key=answers.count, reverse=True)}
    majority, f = next(iter(votes.items()))
    agree = {True: {"reward": 0.5236, "advantage": 0.35}, False: {"reward": -0.08, "advantage": -0.4}}
    return {
        "completion": text,
        "question": text,
        "gate": None,
        "answers": [
            {"framing": framing, "text": a.capitalize() + ".", "label": a, "logprob": -3 * rng.random()}
            | agree[a == majority]
            for framing, a in zip(FRAMINGS, answers, strict=True)
        ],
        "votes": votes,
        "majority": majority,
        "tied": False,
        "f": f,
        "margin": 2 * f - 1,
        "h_sc": -sum(p * math.log(p) for p in votes.values()),
        "greedy": answers[0],
        "token_entropies": [round(2 * rng.random(), 3), 0.02],
        "ste_raw": 1.21,
        "ste_percentile": 0.61,
        "reward": 0.66,
        "reward_reason": "scored",
        "advantage": 0.9,
        "learned": 0.5 <= f < 1,
    }


def understanding_item(image: str, rng: random.Random) -> dict[str, Any]:
    """Two answered questions and one that the gate refused."""
    a, b, c = rng.sample(list(COLOURS), 3)
    asked = question("What colour is the square?", [a] * 4 + [b] * 2 + [c], rng)
    refused = dict.fromkeys(asked) | {"completion": "the the the colour", "gate": "no question mark", "answers": []}
    counted = question("How many objects are there in the picture?", ["2"] * 6 + ["3"], rng)
    questions = [asked, counted, refused | {"reward": -0.2, "advantage": -1.1, "learned": False}]
    return {"image": image, "source": f"images/{rng.randrange(9999):05d}.png", "questions": questions}


def generation_item(image: str, rng: random.Random) -> dict[str, Any]:
    """A drawing task with two kept questions, one dropped, and three candidates."""
    answers = [
        {"question": "What colour is the circle?", "answers": ["red", "red", "blue"], "majority": "red"},
        {"question": "Is there a square?", "answers": ["yes", "yes", "yes"], "majority": "yes"},
    ]
    rows = [
        ("What colour is the circle?", "red", ["red"] * 3, "red"),
        ("Is there a square?", "yes", ["yes", "yes", "no"], "yes"),
        ("Which is larger?", "square", ["circle", "square", "both"], None),
    ]
    keys = ("question", "expected", "answers", "reference")
    return {
        "image": image,
        "source": "images/00017.png",
        "tries": 1,
        "skipped": False,
        "prompt": "a small red circle to the left of a large blue square",
        "quality": 0.87,
        "questions": [dict(zip(keys, row, strict=True)) | {"kept": row[-1] is not None} for row in rows],
        "candidates": [
            {
                "image": image.replace(".png", f"-{c}.png"),
                "seed": rng.randrange(2**62),
                "caption": "a red circle left of a blue square",
                "reward": round(0.3 + 0.5 * rng.random(), 4),
                "s_fid": c / 2,
                "s_cyc": 0.61,
                "s_div": 0.2,
                "s_ctr": 0.0,
                "signal": (c - 1) * 0.4,
                "answers": answers,
            }
            for c in range(3)
        ],
    }


def write_samples(run: Path, step: int, kind: str, rng: random.Random, side: int = 32, items: int = 2) -> None:
    """samples/step-N.json and its images, ``side`` pixels wide."""
    folder = run / "samples" / f"step-{step:06d}"
    folder.mkdir(parents=True)
    make = understanding_item if kind == "understanding" else generation_item
    written = [make(f"{folder.name}/{i:02d}.png", rng) for i in range(items)]
    for item in written:
        for image in [item["image"], *(c["image"] for c in item.get("candidates", []))]:
            scene(rng, side).save(run / "samples" / image)
    sample = {"step": step, "kind": kind, "items": written}
    (run / "samples" / f"{folder.name}.json").write_text(json.dumps(sample))


def build_run(run: Path, steps: int = 60, *, sample_every: int = 5, metrics: bool = True) -> Path:
    """A finished run with everything in it; ``metrics=False`` keeps the metrics to a few (fewer plots, faster)."""
    rng = random.Random(0)
    run.mkdir(parents=True)
    config = {"backbone": "tiny", "steps": steps, "images_per_step": 16, "optimizer": {"lr_solver": 1e-3}}
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    records = [metrics_record(step, steps, rng) for step in range(1, steps + 1)]
    for count, record in enumerate(records[::sample_every]):
        write_samples(run, record["step"], ("understanding", "generation")[count % 2], rng)
    if not metrics:
        records = [{k: r[k] for k in ("step", "kind", *ALWAYS, "alarms")} for r in records]
    write_lines(run / "metrics.jsonl", records)
    write_lines(run / "quarantine.jsonl", [{"file": "images/broken.png", "reason": "truncated file"}])
    summary = {"backbone": "tiny", "steps_done": steps, "seconds": 252.4, "interrupted": False}
    summary |= {"asg_core": "0.1.0", "torch": "2.13.0", "transformers": "5.23.0", "peft": "0.21.2"}
    summary |= {"peak_memory_bytes": 731_000_000, "evaluation": [dict(zip(ROW_KEYS, r, strict=True)) for r in ROWS]}
    (run / "summary.json").write_text(json.dumps(summary))
    return run


def write_lines(file: Path, records: list[dict[str, Any]]) -> None:
    """One JSON object a line."""
    file.write_text("".join(json.dumps(record) + "\n" for record in records))


@pytest.fixture(scope="session")
def runs() -> SimpleNamespace:
    """The functions above that tests use."""
    tools: list[Callable[..., Any]] = [build_run, write_samples, write_lines, scene, metrics_record]
    return SimpleNamespace(**{tool.__name__: tool for tool in tools}, ROWS=ROWS, ROW_KEYS=ROW_KEYS)
