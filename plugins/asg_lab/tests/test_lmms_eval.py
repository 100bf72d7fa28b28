"""lmms-eval itself finds the model and scores a local task of two pictures with it; no network.

Needs the package lmms-eval, in this environment or in folders named by ASG_LMMS_EVAL (separated as in PATH). Its
registry needs loguru and pytz; its evaluator needs more, and that test is skipped without them.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from importlib.machinery import PathFinder
from pathlib import Path

import pytest
from PIL import Image

from asg_core.backbones.interface import Backbone, TextRequest, TextSampling
from asg_lab.presets import load_preset

ROOT = Path(__file__).resolve().parents[3]

TASK = """\
task: two_pictures
dataset_path: json
dataset_kwargs:
  data_files:
    test: {folder}/two.jsonl
test_split: test
output_type: generate_until
doc_to_visual: !function utils.visual
doc_to_text: !function utils.text
doc_to_target: answer
generation_kwargs:
  max_new_tokens: 4
process_results: !function utils.{results}
metric_list:
  - metric: score
    aggregation: mean
    higher_is_better: true
metadata:
  version: 0.0
"""

UTILS = """\
import json, os
from PIL import Image

def visual(doc):
    return [Image.open(doc["image"]).convert("RGB")] if doc["image"] else []

def text(doc, lmms_eval_specific_kwargs=None):
    return doc["question"]

def answered(doc, results):
    return {"score": float(results[0] == doc["answer"])}

def drawn(doc, results):
    return {"score": float(os.path.isfile(json.loads(results[0])["images"][0]))}
"""

EVALUATE = """\
import json, sys
from lmms_eval.evaluator import simple_evaluate
from lmms_eval.tasks import TaskManager
folder, model_args = sys.argv[1:]
tasks = TaskManager("ERROR", include_path=folder, model_name="asg")
found = simple_evaluate(model="asg", model_args=model_args, tasks=["two_pictures"], batch_size=2, task_manager=tasks)
print("SCORE", found["results"]["two_pictures"]["score,none"])
"""


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Where a child process finds lmms-eval and the entry points of this tree's pyproject.toml."""
    folder = tmp_path_factory.mktemp("entry_points")
    info = folder / "asg_core_of_this_tree-0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: asg-core-of-this-tree\nVersion: 0\n")
    project = tomllib.loads((ROOT / "plugins" / "asg_lab" / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    models = project["entry-points"]["lmms_eval.models"]
    (info / "entry_points.txt").write_text(
        "[lmms_eval.models]\n" + "".join(f"{name} = {target}\n" for name, target in models.items())
    )
    paths = [os.environ.get("ASG_LMMS_EVAL", ""), str(folder), os.environ.get("PYTHONPATH", "")]
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(folder / "hf"), "OMP_NUM_THREADS": "1"}
    return {**os.environ, **offline, "PYTHONPATH": os.pathsep.join(filter(None, paths))}


def output(environment: dict[str, str], *words: str) -> str:
    """What a child process printed; skips the test where a package that lmms-eval needs is not there."""
    folders = [*environment["PYTHONPATH"].split(os.pathsep), *sys.path]
    if PathFinder.find_spec("lmms_eval", folders) is None:
        pytest.skip("lmms-eval is not installed")
    done = subprocess.run(
        [sys.executable, *words], env=environment, capture_output=True, text=True, check=False, timeout=300
    )
    missing = re.search(r"ModuleNotFoundError: No module named '(?!asg_core)([^']+)'", done.stderr)
    if done.returncode and missing:
        pytest.skip(f"lmms-eval needs {missing[1]}, which is not installed")
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_its_own_registry_finds_the_model_by_entry_point(environment: dict[str, str]) -> None:
    code = """
from lmms_eval.api.model import lmms
from lmms_eval.models import get_model, list_available_models
model = get_model("asg")
assert "asg" in list_available_models()
assert issubclass(model, lmms), model
print("FOUND", model.__module__, model.__name__)
"""
    assert "FOUND asg_lab.lmms.model AsgModel" in output(environment, "-c", code)


@pytest.mark.parametrize(("results", "pictures"), [("answered", True), ("drawn", False)])
def test_its_evaluator_scores_a_local_task_of_two_documents(
    environment: dict[str, str], tmp_path: Path, tiny: Backbone, results: str, pictures: bool
) -> None:
    question, rows, shown = "how many shapes are there?", [], []
    for i, color in enumerate(("red", "blue")):
        shown.append(Image.new("RGB", (32, 32), color))
        shown[i].save(tmp_path / f"{i}.png")
        image = str(tmp_path / f"{i}.png") if pictures else ""
        rows.append({"image": image, "question": question, "answer": "four"})
    own = tiny.solve([TextRequest(question, image, 0) for image in shown], TextSampling(4, 0.0), None)
    rows[1]["answer"] = own[1].text.strip()
    right = [sample.text.strip() == row["answer"] for sample, row in zip(own, rows, strict=True)]
    assert sum(right) == 1
    (tmp_path / "two.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "two.yaml").write_text(TASK.format(folder=tmp_path, results=results))
    (tmp_path / "utils.py").write_text(UTILS)
    mode = "understanding" if pictures else "generate"
    out = tmp_path / "scores"
    model_args = f"backbone=tiny,device=cpu,mode={mode},output_dir={out}"
    printed = output(environment, "-c", EVALUATE, str(tmp_path), model_args)
    (line,) = [line for line in printed.splitlines() if line.startswith("SCORE")]
    assert float(line.split()[1]) == (0.5 if pictures else 1.0)
    entry = json.loads((out / "protocol.json").read_text())["scores"]["lmms-eval" if pictures else "images"]
    assert (entry["items"]["source"], entry["items"]["count"]) == ("lmms-eval tasks two_pictures", 2)
    assert entry["versions"]["lmms-eval"] is not None


def test_the_presets_tasks_splits_and_values_are_those_of_its_task_files(environment: dict[str, str]) -> None:
    spec = PathFinder.find_spec("lmms_eval", [*environment["PYTHONPATH"].split(os.pathsep), *sys.path])
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("lmms-eval is not installed")
    files = list(Path(spec.submodule_search_locations[0], "tasks").rglob("*.yaml"))
    for metric in load_preset("paper").metrics:
        wanted = rf'^task: "?{metric.task}"?\s*$'
        (text,) = [t for t in (f.read_text(encoding="utf-8") for f in files) if re.search(wanted, t, re.MULTILINE)]
        assert re.search(rf"^test_split: {metric.split}\s*$", text, re.MULTILINE), metric
        assert re.search(rf"^ *- metric: {metric.value}\s*$", text, re.MULTILINE), metric
