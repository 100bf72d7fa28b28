"""easy-VQA from a package of three pictures in its own layout: what is asked, what counts, what is left out."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageDraw

from asg_core.backbones.interface import Backbone, Role, TextRequest, TextSampling
from asg_core.cli import main
from asg_core.data.image_file import open_image
from asg_core.data.image_pool import ImagePool
from asg_core.errors import ConfigError, PluginError
from asg_core.evaluation.compare import compare
from asg_core.evaluation.items import EvalItem, EvaluationRequest
from asg_core.method.answers import answer_span, same_answer
from asg_core.method.prompts import FRAMINGS, HELD_OUT_FRAMINGS, frame
from asg_lab import easy_vqa

QUESTIONS = [
    ["what shape is in the image?", "circle", 0],
    ["what is the color of the shape?", "red", 0],
    ["is there a red shape?", "yes", 0],
    ["is there a teal shape?", "no", 0],
    ["is there not a circle?", "yes", 1],
    ["what color is the shape?", "teal", 2],
    ["what is the color of the rectangle?", "blue", 1],
    ["does the image contain a triangle?", "yes", 2],
    ["what shape is in the image?", "triangle", 2],
]
KNOWN = [0, 1, 2, 4, 8]
"""Questions of which the embedded backbone has all words and the answer: no teal, rectangle, contain."""

Install = Callable[[list[list[object]]], Path]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Puts a package with the given test questions on the path."""
    root = tmp_path / "site" / "easy_vqa"
    for split in ("train", "test"):
        folder = root / "data" / split / "images"
        folder.mkdir(parents=True)
        for index, (shape, color) in enumerate((("ellipse", "red"), ("rectangle", "blue"), ("triangle", "teal"))):
            picture = Image.new("RGB", (64, 64), "white")
            pen = ImageDraw.Draw(picture)
            if shape == "triangle":
                pen.polygon([(30, 10), (50, 50), (10, 50)], fill=color)
            else:
                getattr(pen, shape)((12, 12, 44, 44), fill=color)
            picture.save(folder / f"{index}.png")
        (root / "data" / split / "questions.json").write_text(json.dumps(QUESTIONS))
    (root / "__init__.py").write_text("raise ImportError('the data are read, the code is not run')\n")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))

    def write(questions: list[list[object]]) -> Path:
        (root / "data" / "test" / "questions.json").write_text(json.dumps(questions))
        return root

    return write


@pytest.fixture
def reader(tiny: Backbone) -> Backbone:
    """The embedded backbone as if it had every word."""
    tiny.manifest = tiny.manifest.model_copy(update={"vocabulary": None})
    return tiny


def score(items: list[EvalItem], section: str) -> dict[str, float]:
    return {item.key: item.score for item in items if item.section.startswith(f"easy-VQA, {section}")}


def test_three_sections_of_all_questions_by_category(reader: Backbone, install: Install):
    install(QUESTIONS)
    items = easy_vqa.evaluate(EvaluationRequest(reader, trained=False))
    sections = list(dict.fromkeys(item.section for item in items))
    assert sections == [f"easy-VQA, {n}" for n in ("canonical framing", "7 training framings", "3 held-out framings")]
    categories = {item.key: item.category for item in items}
    assert list(categories) == [f"{i:04d} {q[0]}" for i, q in enumerate(QUESTIONS)]
    expected = ["shape", "color", "yes/no", "yes/no", "yes/no", "color", "color", "yes/no", "shape"]
    assert list(categories.values()) == expected
    assert len(items) == 3 * len(QUESTIONS)


def test_scores_are_shares_of_framings_whose_greedy_answer_about_that_picture_is_right(
    reader: Backbone, install: Install
):
    root = install(QUESTIONS)
    framings = FRAMINGS + HELD_OUT_FRAMINGS
    answers = []
    for text, _, image in QUESTIONS:
        picture = open_image(root / "data" / "test" / "images" / f"{image}.png")
        asked = [TextRequest(frame(str(text), framing), picture, 0) for framing in framings]
        samples = reader.solve(asked, TextSampling(16, 0.0), role=None)
        answers.append([s.text[slice(*answer_span(s.text))] for s in samples])
    # The data now say what the model says under the canonical framing; that is right unless it is no answer at all.
    texts = [str(text) for text, _, _ in QUESTIONS]
    install([[q[0], said[0].upper() + ".", q[2]] for q, said in zip(QUESTIONS, answers, strict=True)])
    items = easy_vqa.evaluate(EvaluationRequest(reader, trained=False))
    for section, chosen in (("canonical", slice(0, 1)), ("7", slice(0, 7)), ("3", slice(7, 10))):
        expected = {
            f"{i:04d} {text}": sum(same_answer(a, said[0], text) for a in said[chosen]) / len(said[chosen])
            for i, (text, said) in enumerate(zip(texts, answers, strict=True))
        }
        assert score(items, section) == pytest.approx(expected)
        assert len({*expected.values()}) > 1


def test_a_closed_vocabulary_is_asked_only_what_it_can_read_and_say_and_the_name_says_so(
    tiny: Backbone, install: Install
):
    install(QUESTIONS)
    items = easy_vqa.evaluate(EvaluationRequest(tiny, trained=False))
    assert sorted({item.key for item in items}) == [f"{i:04d} {QUESTIONS[i][0]}" for i in KNOWN]
    assert all(item.section.endswith("(5 of 9 questions, in the model's words)") for item in items)
    install([QUESTIONS[3], QUESTIONS[7]])
    with pytest.raises(ConfigError, match="tiny"):
        easy_vqa.evaluate(EvaluationRequest(tiny, trained=False))


def test_a_limit_draws_questions_by_the_seed_and_evolved_items_pair_with_base_items(tiny: Backbone, install: Install):
    install(QUESTIONS * 4)

    def keys(seed: int, trained: bool = False) -> list[EvalItem]:
        return easy_vqa.evaluate(EvaluationRequest(tiny, trained=trained, seed=seed, limit=6))

    first = keys(0)
    assert len(score(first, "canonical")) == 6
    assert score(first, "canonical").keys() != score(keys(1), "canonical").keys()
    # A fresh adapter has no effect: same items, same scores. Any other is what "trained" judges, and base does not.
    assert all(row.difference == 0 for row in compare(first, keys(0, trained=True)))
    with torch.no_grad():
        for parameter in tiny.trainable(Role.SOLVER).values():
            parameter += 0.3
    assert keys(0) == first
    assert any(row.difference != 0 for row in compare(first, keys(0, trained=True)))


def test_training_is_given_images_and_no_question(install: Install):
    install(QUESTIONS)
    pool = ImagePool(easy_vqa.train_images(), 0, lambda file, why: pytest.fail(f"{file}: {why}"))
    assert sorted(pool.files) == ["0.png", "1.png", "2.png"]
    assert [p.name for p in easy_vqa.train_images().parent.iterdir() if p.is_file()] == ["questions.json"]


def test_the_folder_for_images_is_printed(install: Install):
    root = install(QUESTIONS)
    path = os.pathsep.join([str(root.parent), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-m", "asg_lab.easy_vqa"],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == f"{root / 'data' / 'train' / 'images'}\n"


def test_the_command_scores_the_suite_and_records_it_in_the_protocol(
    install: Install, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    install(QUESTIONS)
    out = tmp_path / "score"
    words = ["eval", "--suite", "easy_vqa", "--limit", "3", "--device", "cpu", "--json", "--out", str(out)]
    assert main(words) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert {row["section"].split(" (")[0] for row in rows if row["category"] == "all"} == {
        "easy-VQA, canonical framing",
        "easy-VQA, 7 training framings",
        "easy-VQA, 3 held-out framings",
    }
    protocol = json.loads((out / "protocol.json").read_text())["scores"]["before"]
    assert protocol["judge"] == protocol["items"]["source"] == "asg_lab.easy_vqa:evaluate"
    assert "easy-vqa" in protocol["versions"]
    assert main(["eval", "--suite", "easy_vqua"]) == PluginError.exit_code


def test_without_the_package_the_error_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(easy_vqa, "find_spec", lambda name: None)
    with pytest.raises(ConfigError) as caught:
        easy_vqa.train_images()
    assert caught.value.fix == "pip install easy-vqa"


def test_an_incomplete_package_is_named(install: Install):
    root = install(QUESTIONS)
    (root / "data" / "test" / "questions.json").unlink()
    with pytest.raises(ConfigError, match=r"questions\.json"):
        easy_vqa.held_out_questions()
