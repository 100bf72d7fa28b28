"""Whatever a model writes, a report and a terminal show it and do not become it."""

from __future__ import annotations

import io
import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from asg_core.runs.console import TrainingDisplay
from asg_core.runs.report.render import render_report
from devkit.sizes import fuzz

from .hostile_texts import PIECES, texts


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
