"""Kill a run at every point where it writes or computes, resume it, and compare it with a run that nobody killed.

A program, not a test module: ``python crash_matrix.py FOLDER [STRIDE]`` prints one JSON object with the labels of all
points and the differences found. One warm process forks two children per point: the first kills itself with SIGKILL
when it gets there, the second resumes to the end and compares.
"""

from __future__ import annotations

import functools
import gc
import hashlib
import io
import json
import os
import shutil
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from crash_points import POINTS, called, instrument

from asg_core import RunConfig, Trainer, load_backbone
from asg_core.backbones.interface import Backbone, TextRequest, TextSampling
from asg_core.backbones.manifest import LoraSettings
from asg_core.config.seeding import derive_seed
from asg_core.method.prompts import QUESTION_PROMPT
from asg_core.runs.console import TrainingDisplay
from asg_core.runs.folder import read_json_lines
from asg_core.tiny.images import write_images
from asg_core.training.state import random_state

STEPS = 3
SETTINGS: dict[str, Any] = {
    "steps": STEPS,
    "images_per_step": 1,
    "evaluate": False,
    "checkpoint_every_steps": 1,
    "sample_every_steps": 2,
    "schedule": {"ratio": (1, 1)},
    "lora": {"rank": 2, "alpha": 4.0},
    "ask": {"max_new_tokens": 12, "spec_max_new_tokens": 48, "questions_per_image": 2},
    "solve": {"max_new_tokens": 3, "framings": 3, "caption_max_new_tokens": 4},
    "generate": {"prompts_per_step": 1, "candidates": 2},
    "optimizer": {"lr_proposer": 1e-3, "lr_solver": 1e-3, "lr_generator": 1e-3},
}
COMPUTE = ("ask", "solve", "token_logits", "generate", "generation_loss", "embed")


def train(run: Path, images: Path, backbone: Backbone, fatal: int) -> Trainer:
    """Start the run, or go on with it if there is one, as the same command would. ``fatal`` 0: nothing happens."""
    for name in COMPUTE:
        setattr(backbone, name, called(name, getattr(backbone, name)))
    POINTS.folder, POINTS.fatal = str(run), fatal
    config = RunConfig.model_validate({**SETTINGS, "images": images, "out": run})
    display = TrainingDisplay(STEPS, stream=io.StringIO())
    if (run / "config.yaml").exists():
        trainer = Trainer.resume(run, backbone=backbone, display=display)
    else:
        trainer = Trainer(config, backbone, display)
    trainer.run()
    POINTS.folder = None
    return trainer


def outcome(trainer: Trainer) -> dict[str, Any]:
    """All that a run leaves behind but times: files, records, hashes of tensors, its memory, the next question."""
    run = trainer.folder.path
    files = sorted(p.relative_to(run).as_posix() for p in run.rglob("*") if p.is_file() and p.name != ".lock")
    found: dict[str, Any] = {"files": files}
    for name in files:
        if name.endswith(".safetensors"):
            tensors = safetensors.torch.load_file(run / name)
            found |= {f"{name}:{key}": hashlib.sha256(t.numpy().tobytes()).hexdigest() for key, t in tensors.items()}
        elif name.endswith("state.json"):
            found[name] = {k: v for k, v in json.loads((run / name).read_text()).items() if k != "seconds"}
        elif name.startswith("samples") and name.endswith("json"):
            found[name] = json.loads((run / name).read_text())
    for name in ("metrics.jsonl", "quarantine.jsonl"):
        lines = (run / name).read_text().count("\n")
        found[name] = [lines, [{k: v for k, v in r.items() if k != "seconds"} for r in read_json_lines(run / name)]]
    # what the process remembers, beside what it wrote: a state that both runs fail to save would look equal there
    found["in memory"] = {
        "betas": [learner.kl.beta for learner in trainer.state.learners.values() if learner.kl],
        "window": trainer.state.window.state(),
        "baseline": trainer.state.baseline.value,
        "monitor": trainer.state.monitor.state(),
        "pool": trainer.state.pool.state(),
        "counters": [trainer.state.step, trainer.state.nonfinite_in_a_row],
        "streams": hashlib.sha256(repr(random_state()).encode()).hexdigest(),
        "weights": {
            f"{role.value}.{name}": hashlib.sha256(tensor.detach().numpy().tobytes()).hexdigest()
            for role, optimizer in trainer.state.optimizers.items()
            for name, tensor in {**optimizer.parameters, **optimizer.state()}.items()
        },
    }
    source = trainer.state.pool.take(1)[0]
    request = TextRequest(QUESTION_PROMPT, source.image, derive_seed(trainer.config.seed, STEPS + 1, "ask", 0, 0))
    sample = trainer.backbone.ask([request], TextSampling(12))[0]
    found["next question"] = [sample.text, sample.token_ids, sample.logprobs, str(source.path.name)]
    return found


def forked(work: Callable[[], object], log: Path) -> int:
    """Process id of a child that does ``work``; what it raises goes to ``log``."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        except BaseException:  # noqa: BLE001 - the parent reads it
            POINTS.folder = None
            log.write_text(traceback.format_exc())
        finally:
            os._exit(code)
    return child


def killed_and_resumed(folder: Path, images: Path, backbone: Backbone, expected: Path, fatal: tuple[int, ...]) -> None:
    """Kill the run at the first point, its resumption at the second, ...; then resume to the end and compare."""
    for k in fatal:
        _, status = os.waitpid(forked(lambda k=k: train(folder / "run", images, backbone, k), folder / "log"), 0)
        if not os.WIFSIGNALED(status):
            raise AssertionError(f"not killed at point {k}: {(folder / 'log').read_text()[-2000:]}")
    found = outcome(train(folder / "run", images, backbone, 0))
    wanted = json.loads(expected.read_text())
    found = json.loads(json.dumps(found))
    different = [key for key in sorted(found.keys() | wanted.keys()) if found.get(key) != wanted.get(key)]
    if different:
        first = different[0]
        raise AssertionError(
            f"{different[:5]}: {str(found.get(first))[:800]} instead of {str(wanted.get(first))[:800]}"
        )


def attempts(total: int, stride: int, labels: list[str]) -> Iterator[tuple[int, ...]]:
    """Every point once; and resumptions killed again, of a run that had died in the last update."""
    yield from ((k,) for k in range(1, total + 1, stride))
    late = max(i for i, label in enumerate(labels, start=1) if label == "before AdamW.step")
    left = total - labels.index("os.rename checkpoints/.tmp-step-000002")
    yield from ((late, k) for k in range(1, left, 9 * stride))


def main(folder: Path, stride: int = 1, workers: int = 2) -> dict[str, Any]:
    """Try all points; a summary for the test."""
    torch.set_num_threads(1)  # no thread may be running when this process forks
    images = folder / "images"
    images.mkdir(parents=True)
    make_images(images)
    backbone = load_backbone("tiny", device="cpu", dtype="float32", lora=LoraSettings(rank=2, alpha=4.0))
    instrument()
    gc.freeze()  # so that children share the pages of this process
    expected, points = folder / "expected.json", folder / "points.json"

    def straight() -> None:
        found = outcome(train(folder / "straight", images, backbone, 0))
        expected.write_text(json.dumps(found))
        points.write_text(json.dumps(POINTS.labels))

    _, status = os.waitpid(forked(straight, folder / "log"), 0)
    if status:
        raise AssertionError((folder / "log").read_text())
    labels = json.loads(points.read_text())
    waiting = list(attempts(len(labels), stride, labels))[::-1]
    tried, failures, running = len(waiting), [], {}
    while waiting or running:
        while waiting and len(running) < workers:
            fatal = waiting.pop()
            own = folder / "-".join(map(str, fatal))
            own.mkdir()
            work = functools.partial(killed_and_resumed, own, images, backbone, expected, fatal)
            running[forked(work, own / "failure")] = (fatal, own)
        child, status = os.wait()
        fatal, own = running.pop(child)
        if status:
            reason = (own / "failure").read_text() if (own / "failure").exists() else f"status {status}"
            failures.append({"points": [labels[min(k, len(labels)) - 1] for k in fatal], "k": fatal, "why": reason})
        shutil.rmtree(own)
    return {"labels": labels, "stride": stride, "tried": tried, "failures": failures}


def make_images(folder: Path) -> None:
    """Five scenes of the embedded world and a file that is none."""
    everything = folder.with_name("everything")
    everything.mkdir()
    write_images(everything, 0)
    for file in sorted(p for p in everything.rglob("*") if p.is_file())[:5]:
        shutil.copy(file, folder)
    shutil.rmtree(everything)
    (folder / "torn.png").write_bytes(b"\x89PNG\r\n\x1a\n")


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), *map(int, sys.argv[2:]))))
