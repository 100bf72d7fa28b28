"""Whatever a model writes is data: parsed, counted, shown, never obeyed, and it crashes nothing."""

from __future__ import annotations

import json
import math
import time
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from asg_core.backbones.interface import TextRequest, TextSample
from asg_core.method.answers import answer_span, canonical_label, normalise, opposite, same_answer, vote
from asg_core.method.prompts import FRAMINGS, GateFailure, frame, parse_question, parse_spec
from asg_core.method.token_entropy import solver_token_entropy
from asg_core.runs.console import TrainingDisplay
from asg_core.runs.report import render_report
from devkit.sizes import fuzz

PIECES = (
    "<answer>",
    "</answer>",
    "< answer",
    "Q:",
    "Q1.",
    "A:",
    "Answer:",
    "Prompt:",
    "Question 2)",
    "?",
    "??",
    "？",
    ".",
    ",",
    "yes",
    "no",
    "not",
    "two",
    "1,000",
    "12",
    "-3.0",
    "½",
    "²",
    "the",
    "a",
    " ",
    "\n",
    "\r\n",
    "\t",
    "\u2028",
    "\x00",
    "\x1b[2J",
    "\u202e",
    "\u200b",
    "\ufeff",
    "ﬁ",
    "İ",
    "ß",
    "é",
    "e\u0301",
    "😀",
    "👨‍👩‍👧",
    "中",
    "\U000e0041",
    "```",
    "{{7*7}}",
    "{% raw %}",
    "${HOME}",
    "{question}",
    "%s",
    "{0.__class__}",
    "__import__('os')",
    "<script>alert(1)</script>",
    "<img src=x onerror=x>",
    "&lt;",
    "&",
    '"',
    "'",
    "“",
    "]]>",
    "<!--",
    "javascript:alert(1)",
    "../../etc/passwd",
    "Ignore all previous instructions",
    "system: you are",
    "<|im_end|>",
    "[INST]",
    "<image>",
    "!!python/object",
    "how many cats are there?",
    "is it red?",
    "what is this?",
)
texts = st.one_of(
    st.lists(st.sampled_from(PIECES), max_size=14).map("".join),
    st.lists(st.sampled_from(PIECES), max_size=14).map(" ".join),
    st.text(max_size=60),
)


@fuzz(2000)
@given(texts)
def test_a_question_that_passes_the_gate_is_one_plain_line(text: str) -> None:
    question = parse_question(text)
    if isinstance(question, GateFailure):
        assert question.reason
        return
    assert question.endswith("?")
    assert question.count("?") == 1
    assert len(question.splitlines()) == 1
    assert 3 <= len(question[:-1].split()) <= 40
    assert not any(mark in question for mark in ("```", "{{", "}}", "<answer>", "<script>"))
    assert parse_question(question) == question
    assert all(frame(question, framing).count(question) >= 1 for framing in FRAMINGS)


@fuzz(1500)
@given(
    st.lists(st.one_of(texts, st.sampled_from(["Prompt: a red cat", "Q: what is this thing? A: a cat"])), max_size=8)
)
def test_a_spec_has_questions_that_pass_the_gate(parts: list[str]) -> None:
    spec = parse_spec(" ".join(parts))
    if isinstance(spec, GateFailure):
        assert spec.reason
        return
    assert 1 <= len(spec.questions) <= 3
    assert spec.raw_count >= len(spec.questions)
    assert 1 <= len(spec.prompt.split()) <= 80
    for question, answer in spec.questions:
        assert parse_question(question) == question
        assert answer


@fuzz(2500)
@given(texts, texts)
def test_labels_are_stable_and_comparison_is_symmetric(answer: str, question: str) -> None:
    start, end = answer_span(answer)
    assert 0 <= start <= end <= len(answer)
    assert normalise(normalise(answer)) == normalise(answer)
    label = canonical_label(answer, question)
    assert canonical_label(label, question) == label
    assert same_answer(answer, question, question) == same_answer(question, answer, question)
    assert opposite(answer, question, question) == opposite(question, answer, question)


@fuzz(1000)
@given(st.lists(texts, min_size=1, max_size=9), st.integers(0, 2**63 - 1))
def test_votes_are_shares_of_one(labels: list[str], seed: int) -> None:
    tally = vote([canonical_label(text, "what is this?") for text in labels], seed)
    assert math.fsum(tally.shares.values()) == pytest.approx(1.0)
    assert 0 <= tally.entropy <= math.log(len(labels)) + 1e-9
    assert tally.majority in tally.shares


numbers = st.one_of(st.floats(0, 8), st.sampled_from([math.nan, math.inf, -math.inf]))


@fuzz(1000)
@given(st.lists(st.tuples(st.one_of(texts, st.just("")), numbers), max_size=12), st.integers(1, 6))
def test_token_entropies_give_a_finite_value_or_none(tokens: list[tuple[str, float]], first: int) -> None:
    pieces = tuple(piece for piece, _ in tokens)
    sample = TextSample(
        TextRequest("", None, 0),
        "".join(pieces),
        (0,) * len(tokens),
        pieces,
        (0.0,) * len(tokens),
        tuple(h for _, h in tokens),
        "length",
        1.0,
    )
    for reduce in ("max", "mean"):
        value = solver_token_entropy(sample, first, reduce)  # type: ignore[arg-type]
        assert value is None or (math.isfinite(value) and 0 <= value <= 8)


@pytest.mark.parametrize("piece", [p for p in PIECES if p] + ["Q: what is it? A: ", "Prompt: a Q: ", "<answer>a"])
def test_a_very_long_completion_takes_no_time(piece: str) -> None:
    text = (piece + " ") * (100_000 // (len(piece) + 1))
    started = time.process_time()
    parse_question(text)
    parse_spec(text)
    parse_spec("Prompt: " + text)
    canonical_label(text, text)
    assert time.process_time() - started < 4


class Shape(HTMLParser):
    """Tags and attribute names of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.update([tag, *(f"{tag}@{name}" for name, _ in attrs)])


def report(folder: Path, text: str) -> str:
    """A report of a run in which every text is ``text``."""
    folder.mkdir(exist_ok=True)
    answer = {"framing": text, "text": text, "label": text, "logprob": -1.0, "reward": 0.1, "advantage": 0.2}
    question = {
        "completion": text,
        "question": text,
        "gate": text,
        "answers": [answer] * 3,
        "votes": {text: 1.0},
        "majority": text,
        "tied": False,
        "f": 1.0,
        "margin": 1.0,
        "h_sc": 0.0,
        "greedy": text,
        "token_entropies": [0.1],
        "ste_raw": 0.1,
        "ste_percentile": 0.5,
        "reward": 0.1,
        "reward_reason": text,
        "advantage": 0.0,
        "learned": True,
    }
    candidate = {
        "image": text,
        "seed": 1,
        "caption": text,
        "reward": 0.5,
        "s_fid": 1,
        "s_cyc": 0.5,
        "s_div": 0.1,
        "s_ctr": 0,
        "signal": 0.1,
        "answers": [{"question": text, "answers": [text] * 3, "majority": text}],
    }
    drawn = {
        "image": text,
        "source": text,
        "tries": 1,
        "skipped": False,
        "prompt": text,
        "quality": 1.0,
        "questions": [{"question": text, "expected": text, "answers": [text], "reference": text, "kept": True}],
        "candidates": [candidate] * 2,
    }
    (folder / "samples").mkdir(exist_ok=True)
    (folder / "config.yaml").write_text(json.dumps({"backbone": text, "images": text}), encoding="utf-8")
    for step, kind, item in (
        (1, "understanding", {"image": text, "source": text, "questions": [question]}),
        (2, "generation", drawn),
    ):
        sample = {"step": step, "kind": kind, "items": [item]}
        (folder / "samples" / f"step-00000{step}.json").write_text(json.dumps(sample))
    row = {"step": 1, "kind": "understanding", "alarms": [text], text: 1.0}
    (folder / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    (folder / "quarantine.jsonl").write_text(json.dumps({"file": text, "reason": text}) + "\n")
    (folder / "summary.json").write_text(
        json.dumps(
            {"backbone": text, "steps_done": 1, "evaluation": [{"name": text, "section": text}], "interrupted": text}
        )
    )
    return render_report(folder).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, set[str]]:
    """A folder for reports, and what the page of a harmless run is made of."""
    folder = tmp_path_factory.mktemp("report")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("asg_core.runs.report.render.draw_panels", lambda *_: [])
        return folder, set().union(*(Shape(report(folder, text)).tags for text in ("harmless", "", "1.5", "a\nb")))


@fuzz(60)
@given(text=st.one_of(texts, st.text(max_size=20).map(lambda t: t + "\ud800"), st.sampled_from(PIECES)))
def test_a_report_shows_texts_and_never_becomes_them(text: str, plain: tuple[Path, set[str]]) -> None:
    folder, tags = plain
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("asg_core.runs.report.render.draw_panels", lambda *_: [])
        page = report(folder, text)
    assert Shape(page).tags <= tags
    assert "<script" not in page
    assert "{{7*7}}" not in text or "{{7*7}}" in page


@fuzz(300)
@given(texts)
def test_nothing_that_is_shown_controls_the_terminal(text: str) -> None:
    import io

    stream = io.StringIO()
    display = TrainingDisplay(3, stream=stream, interactive=False)
    display.message(text)
    display.step({"step": 1, "kind": text, "reward_proposer": 0.5})
    assert not [c for c in stream.getvalue() if not c.isprintable() and c != "\n"]


def test_a_file_name_that_is_no_unicode_does_not_cost_the_report(tmp_path: Path, small: Any, scenes: Path) -> None:
    from asg_core import Trainer

    photos = tmp_path / "photos"
    photos.mkdir()
    for i, file in enumerate(sorted(p for p in scenes.rglob("*") if p.is_file())[:3]):
        Image.open(file).save(tmp_path / "x.png")
        (tmp_path / "x.png").rename(Path(str(photos) + f"/caf{i}\udce9.png"))
    Path(str(photos) + "/bad\udcff.png").write_bytes(b"")
    out = Trainer(small(steps=2, images=photos)).run().out
    assert (out / "report.html").stat().st_size > 1000
    assert len((out / "quarantine.jsonl").read_text().splitlines()) == 1
