"""Signals against the truth: rows from runs and models, what is refused, what is written."""

from __future__ import annotations

import json
import random
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from asg_core import RunConfig, Trainer
from asg_core.backbones.interface import Backbone
from asg_core.backbones.registry import find_manifest
from asg_core.cli import main
from asg_core.errors import CapabilityError, ConfigError, RunFolderError, WeightsError
from asg_core.method.answers import same_answer
from asg_core.tiny.images import pool_scenes
from asg_core.tiny.questions import draw_question
from asg_core.tiny.truth import TinyTruth
from asg_core.tiny.world import Scene, render, scene_codes
from asg_lab.study import Suite
from asg_lab.study.runner import run_folder_of
from asg_lab.study.signals import SignalsMeasure, solving
from asg_lab.study.signals.page import shown
from asg_lab.study.signals.rows import Asked, Drawn, Solved
from asg_lab.study.signals.statistics import Estimate
from asg_lab.study.signals.tables import held_out, training
from asg_lab.study.signals.training import read_training

SUITE: dict[str, Any] = {
    "name": "mini",
    "about": "a question",
    "seeds": [0, 1],
    "reference": "full",
    "config": {
        "backbone": "tiny",
        "device": "cpu",
        "steps": 5,
        "sample_every_steps": 1,
        "images_per_step": 2,
        "generate": {"prompts_per_step": 2, "candidates": 2},
        "evaluate": False,
    },
    "arms": {"full": {"about": "all"}},
    "measure": "signals",
}


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of two seeds, of which one was run."""
    out = tmp_path_factory.mktemp("study")
    config = Suite.model_validate(SUITE).run_config("full", 0)
    run = run_folder_of(out, "full", 0)
    run.parent.mkdir()
    Trainer(config.model_copy(update={"out": run})).run()
    summary = json.loads((run / "summary.json").read_text())
    (run / "summary.json").write_text(json.dumps({**summary, "evaluation": []}))
    for name in ("before", "after"):
        (run / "evaluation" / f"{name}.json").write_text("[]")
    return out


def write_samples(run: Path, seed: int) -> Scene:
    """Samples of two steps about image 0003, as a run would have written them, with rewards of our own."""
    scene = pool_scenes(seed)[3]
    (run / "samples" / "step-000004").mkdir(parents=True)
    right, wrong = str(len(scene.things)), str(len(scene.things) + 1)
    numbers = {"f": 5 / 7, "h_sc": 0.5, "ste_raw": 0.3, "learned": True, "gate": None}
    count = {"question": "how many objects are there?", **numbers}
    step = {
        "step": 1,
        "kind": "understanding",
        "items": [
            {
                "image": "step-000001/00.png",
                "source": "runs/x/images/0003.png",
                "questions": [
                    {**count, "majority": right, "reward": 0.5},
                    {**count, "majority": wrong, "reward": 0.25, "learned": False},
                    {**count, "question": "is it nice?", "majority": "yes", "reward": 0.1},
                    {"question": None, "gate": "no question", "reward": -0.2, "majority": None},
                ],
            }
        ],
    }
    (run / "samples" / "step-000001.json").write_text(json.dumps(step))
    empty = Scene((), scene.tint)
    for name, shown_scene in (("00-0.png", scene), ("00-1.png", empty)):
        render(scene_codes(shown_scene)).save(run / "samples" / "step-000004" / name)
    thing = scene.things[0]
    kept = [
        {"question": f"is there a {thing.shape}?", "reference": "yes", "kept": True},
        {"question": "how many objects are there?", "reference": wrong, "kept": True},
        {"question": "is it nice?", "reference": "yes", "kept": True},
        {"question": "how many circles are there?", "reference": None, "kept": False},
    ]
    item = {
        "source": "runs/x/images/0003.png",
        "prompt": f"a {thing.color} {thing.shape}",
        "questions": kept,
        "candidates": [
            {"image": "step-000004/00-0.png", "reward": 0.4, "s_fid": 0.5},
            {"image": "step-000004/00-1.png", "reward": 0.6, "s_fid": 0.5},
        ],
    }
    skipped = {"source": "runs/x/images/0001.png", "prompt": None, "questions": [], "candidates": []}
    (run / "samples" / "step-000004.json").write_text(
        json.dumps({"step": 4, "kind": "generation", "items": [item, skipped]})
    )
    return scene


def test_recorded_answers_references_and_drawings_are_held_against_the_scene(tmp_path: Path):
    scene = write_samples(tmp_path, 7)
    asked, referenced, drawn = read_training(tmp_path, "full", 7, TinyTruth(7))
    assert [(r.truth, r.right, r.reward) for r in asked] == [
        (str(len(scene.things)), True, 0.5),
        (str(len(scene.things)), False, 0.25),
        (None, None, 0.1),
    ]
    assert [r.right for r in referenced] == [True, False, None]
    # The exact drawing answers both questions with an answer as the source does, the empty one neither.
    assert [(r.fidelity, r.shows, r.reward) for r in drawn] == [(1.0, True, 0.4), (0.0, False, 0.6)]


@pytest.mark.parametrize("name", ["../outside.png", "/etc/outside.png"])
def test_a_sample_record_cannot_name_a_drawing_outside_its_folder(name: str, tmp_path: Path):
    write_samples(tmp_path, 7)
    for file in (tmp_path / "samples").glob("step-*.json"):
        record = json.loads(file.read_text())
        for item in record["items"]:
            for candidate in item.get("candidates", ()):
                candidate["image"] = name
        file.write_text(json.dumps(record))
    with pytest.raises(WeightsError, match="outside"):
        read_training(tmp_path, "full", 7, TinyTruth(7))


def test_lines_of_training_by_hand(tmp_path: Path):
    write_samples(tmp_path, 7)
    table = training("full", *read_training(tmp_path, "full", 7, TinyTruth(7)), steps=6)
    found = {label: [e.value for e in estimates] for label, estimates in table.lines}
    early, late, whole = 0, 1, 2
    assert found["questions that have a true answer"][whole] == pytest.approx(2 / 3)
    assert found["majority right, of those"] == [0.5, None, 0.5]
    assert found["majority right, of those that the Solver learnt from"][early] == 1.0
    assert found["Proposer's reward where the majority is right"][early] == 0.5
    assert found["Proposer's reward where it is wrong"][early] == 0.25
    assert found["Proposer's reward where there is no true answer"][early] == 0.1
    assert found["reference answers right"][whole] == 0.5
    assert found["Generator's reward"][whole] == 0.5
    assert found["true fidelity"][whole] == 0.5
    # The empty drawing earned more: the one pair of the one prompt is the wrong way round.
    assert found["of two drawings, the one of higher true fidelity earns more"][whole] == 0.0
    assert found["of two drawings, the one that shows the prompt earns more"][whole] == 0.0
    # Step 4 of 6 is neither in the first third nor in the last.
    assert found["Generator's reward"][early] is found["Generator's reward"][late] is None


def test_drawings_are_compared_within_their_prompt_only():
    def drawn(image: int, reward: float, fidelity: float) -> Drawn:
        return Drawn("full", 0, 4, image, "p", reward, 0.5, fidelity, None)

    rows = [drawn(0, 0.1, 0.0), drawn(0, 0.2, 1.0), drawn(1, 0.8, 0.0), drawn(1, 0.9, 1.0)]
    lines = dict(training("full", [], [], rows, steps=6).lines)
    found = lines["of two drawings, the one of higher true fidelity earns more"][-1]
    assert (found.value, found.n) == (1.0, 2)


def solved(ste: float | None, f: float, right: bool) -> Solved:
    return Solved("base", 0, "color", "q", ste, 0.0 if f == 1.0 else 1.0, f, right)


def test_held_out_strata_by_hand():
    rows = [
        solved(0.9, 1.0, False),
        solved(0.1, 1.0, True),
        solved(0.5, 1.0, True),
        solved(0.2, 6 / 7, False),
        solved(0.05, 3 / 7, False),
        solved(None, 1.0, True),
    ]
    table = held_out("base", rows)
    found = {(signal, which): (e.n, e.positives, e.value) for signal, which, e in table.aurocs}
    assert found["raw STE", "all seven agree"] == (3, 1, 1.0)
    assert found["raw STE", "at least 6 of 7 agree"] == (4, 2, 0.75)
    assert found["raw STE", "all"] == (5, 3, pytest.approx(3 / 6))
    assert found["H_sc", "all"][:2] == (6, 3)
    assert table.right.value == 0.5
    assert [(b.n, b.right) for b in table.bins] == [(1, 0), (1, 0), (4, 3)]


def test_a_question_is_answered_alike_whatever_else_is_in_its_batch(
    tiny: Backbone, config: RunConfig, monkeypatch: pytest.MonkeyPatch
):
    questions = TinyTruth(0).questions(10)
    rows = solving.solve_held_out(tiny, None, "base", questions, config)
    monkeypatch.setattr(solving, "_BATCH", 3)
    again = solving.solve_held_out(tiny, None, "base", questions, config)
    assert [(r.f, r.h_sc, r.right) for r in again] == [(r.f, r.h_sc, r.right) for r in rows]
    assert [r.ste for r in again] == pytest.approx([r.ste for r in rows], abs=1e-5)
    assert {round(7 * r.f) for r in rows} <= set(range(1, 8))
    assert all((r.h_sc == 0.0) == (r.f == 1.0) for r in rows)
    # Whether a majority is right depends on the true answer and on nothing else of the question.
    lies = [replace(q, answer="purple cat") for q in questions]
    assert not any(r.right for r in solving.solve_held_out(tiny, None, "base", lies, config))


def test_a_study_measures_base_and_evolved_and_leaves_out_what_was_not_run(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr("asg_lab.study.signals.QUESTIONS", 7)
    suite = study / "mini.yaml"
    suite.write_text(json.dumps({**SUITE, "reference": "other", "arms": {**SUITE["arms"], "other": {"about": "no"}}}))
    assert main(["study", str(suite), "--arms", "full", "--out", str(study), "--no-run"]) == 0
    page = study / "signals.html"
    assert f"page: {page}" in capsys.readouterr().out
    rows = json.loads((study / "signals_rows.json").read_text())
    models = [(r[0], r[1]) for r in rows["solved"]["rows"]]
    assert {m: models.count(m) for m in models} == {("base", 0): 7, ("base", 1): 7, ("full", 0): 7}
    # The trained Solver is another model than the base, if only by a little after five steps.
    ste = {model: [r[4] for r in rows["solved"]["rows"] if r[:2] == [model, 0]] for model in ("base", "full")}
    assert ste["base"] != ste["full"]
    assert ste["base"] == pytest.approx(ste["full"], abs=0.3)
    asked = [Asked(*row) for row in rows["asked"]["rows"]]
    assert rows["steps"] == {"full": SUITE["config"]["steps"]}
    assert {r.step for r in asked} <= {1, 2, 3}
    assert {r[2] for r in rows["drawn"]["rows"]} <= {4, 5}
    # Every truth is that of the pool's own scene: another seed's pool gives other answers.
    own, other = TinyTruth(0), TinyTruth(1)
    samples = [json.loads(f.read_text()) for f in sorted((study / "runs/full-0/samples").glob("step-*.json"))]
    sources = {(s["step"], i): Path(x["source"]).name for s in samples for i, x in enumerate(s["items"])}
    truths = [(own.answer(sources[r.step, r.image], r.question), r.truth) for r in asked]
    assert all(a == b for a, b in truths)
    assert any(other.answer(sources[r.step, r.image], r.question) != r.truth for r in asked)
    html = page.read_text()
    assert "too few for an interval" in html
    assert html.count("data:image/svg+xml") == 4
    assert "http" not in html.replace("http://www.w3.org", "")
    assert "full, in training" in (study / "signals.md").read_text()
    # The rows alone, without runs and models, make the same page and tables; those of other seeds are left alone.
    shutil.copy(study / "signals_rows.json", tmp_path)
    monkeypatch.delattr("asg_lab.study.signals.solve_held_out")
    command = ["study", str(suite), "--arms", "full", "--out", str(tmp_path), "--no-run"]
    assert main(command) == 0
    for name in ("signals.html", "signals.json", "signals.md", "signals_rows.json"):
        assert (tmp_path / name).read_bytes() == (study / name).read_bytes()
    (tmp_path / "results.json").unlink(missing_ok=True)
    assert main([*command, "--seeds", "0"]) == RunFolderError.exit_code
    assert (tmp_path / "signals_rows.json").read_bytes() == (study / "signals_rows.json").read_bytes()


def test_true_answers_of_held_out_questions_are_those_of_their_scenes():
    rng = random.Random(1)
    for scene in pool_scenes(2)[:40]:
        question = draw_question(scene, rng)
        found = TinyTruth(2)._pool.index(scene)
        answer = TinyTruth(2).answer(f"{found:04d}.png", question.text)
        assert answer is not None
        assert same_answer(answer, question.answer, question.text)


def test_runs_on_a_folder_of_images_are_refused(tmp_path: Path):
    arms = {"full": {"about": "x"}, "mine": {"about": "y", "config": {"images": str(tmp_path)}}}
    with pytest.raises(ConfigError, match="mine"):
        SignalsMeasure(Suite.model_validate({**SUITE, "arms": arms}))


def test_a_backbone_without_known_world_is_refused_before_it_trains(monkeypatch: pytest.MonkeyPatch):
    blind = find_manifest("tiny").model_copy(update={"truth": None})
    monkeypatch.setattr("asg_lab.study.signals.find_manifest", lambda name: blind)
    with pytest.raises(CapabilityError, match="tiny"):
        SignalsMeasure(Suite.model_validate(SUITE))


def test_an_estimate_says_when_it_rests_on_too_little():
    assert shown(Estimate(0.66, 0.64, 0.69, 2940, 638)) == "0.660 (0.640 to 0.690)"
    assert shown(Estimate(0.76, None, None, 149, 1)) == "0.760 (too few)"
    assert shown(Estimate(None, None, None, 0, 0)) == "–"
