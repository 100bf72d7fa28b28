"""``asg generate --layout`` and ``asg eval --preset``: folders, their protocols, the printed command, and refusals."""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from asg_core.backbones.interface import Role
from asg_core.backbones.known_plugins import EXTENSIONS, LAB, LAB_FOLDER
from asg_core.backbones.loading import load_backbone
from asg_core.backbones.registry import list_plugins, resolve
from asg_core.cli import main
from asg_core.runs.configuration import load_run_config, write_run_config
from asg_lab.plugin import asg_extensions

Call = Callable[..., str]


def test_the_core_knows_how_to_get_all_that_is_announced_and_nothing_else() -> None:
    announced = {(e.kind, e.name) for e in asg_extensions()}
    assert announced == {(kind, name) for kind, names in EXTENSIONS.items() for name in names}
    assert Path(__file__).resolve().parents[1].as_posix().endswith(LAB_FOLDER)


def test_the_verb_has_its_own_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["study", "--help"]) == 0
    assert "usage: asg study" in capsys.readouterr().out


def test_the_installed_plugin_is_listed_and_its_targets_can_be_imported() -> None:
    (found,) = [record for record in list_plugins() if record.name == LAB]
    assert (found.state, found.reason) == ("ok", None)
    assert list(found.extensions) == asg_extensions()
    assert all(callable(resolve(extension.target)) for extension in found.extensions)


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Call:
    """Run a command that must succeed; returns its stdout."""

    def run(*words: object) -> str:
        code = main([str(word) for word in words])
        out, err = capsys.readouterr()
        assert code == 0, err
        return out

    return run


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run a command that must fail with the given code; returns its message."""

    def run(expected: int, *words: object) -> str:
        code = main([str(word) for word in words])
        err = capsys.readouterr().err
        assert code == expected, err
        return err

    return run


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder whose adapters have an effect."""
    folder = tmp_path_factory.mktemp("trained")
    backbone = load_backbone("tiny", device="cpu")
    generator = torch.Generator().manual_seed(0)
    write_run_config(load_run_config(None, ["backbone=tiny", "seed=5"]), folder / "config.yaml")
    for role in Role:
        with torch.no_grad():
            for parameter in backbone.trainable(role).values():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
        backbone.save_role(role, folder / "adapters" / role.value)
    return folder


def metadata(folder: Path) -> Path:
    file = folder / "evaluation_metadata.jsonl"
    rows = [{"tag": "colors", "include": [], "prompt": text} for text in ("a red circle", "a blue square")]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def test_a_layout_is_drawn_once_and_goes_on_where_it_ended(call: Call, run_folder: Path, tmp_path: Path) -> None:
    words = ("generate", "--prompts", metadata(tmp_path), "--layout", "geneval", "--n", 2)
    base = (*words, "--out", tmp_path / "base", "seed=5")
    assert json.loads(call(*base, "--json"))["drawn"] == 4
    assert json.loads(call(*base, "--json")) == {"out": str(tmp_path / "base"), "files": 4, "drawn": 0, "kept": 4}
    files = sorted(p.relative_to(tmp_path / "base") for p in (tmp_path / "base").rglob("*") if p.is_file())
    assert [str(f) for f in files] == [
        "images/00000/metadata.jsonl",
        "images/00000/samples/00000.png",
        "images/00000/samples/00001.png",
        "images/00001/metadata.jsonl",
        "images/00001/samples/00000.png",
        "images/00001/samples/00001.png",
        "protocol.json",
    ]
    call(*words, "--out", tmp_path / "trained", "--run", run_folder)
    drawn = [(tmp_path / side / files[1]).read_bytes() for side in ("base", "trained")]
    assert drawn[0] != drawn[1]


def test_a_layouts_protocol_holds_the_prompt_files_hash(call: Call, tmp_path: Path) -> None:
    file = metadata(tmp_path)
    call("generate", "--prompts", file, "--layout", "geneval", "--n", 1, "--out", tmp_path / "x", "seed=0")
    entry = json.loads((tmp_path / "x" / "protocol.json").read_text())["scores"]["images"]
    assert entry["items"]["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert (entry["items"]["source"], entry["items"]["count"]) == (file.name, 2)
    assert (entry["sampling"]["layout"], entry["sampling"]["samples_per_prompt"]) == ("geneval", 1)
    assert entry["judge"] is None


def test_a_folder_is_not_continued_with_another_model_or_seed(
    call: Call, refused: Callable[..., str], run_folder: Path, tmp_path: Path
) -> None:
    words = ("generate", "--prompts", metadata(tmp_path), "--layout", "geneval", "--n", 1, "--out", tmp_path / "x")
    call(*words, "seed=5")
    assert "seed: 5 / 6" in refused(2, *words, "seed=6")
    assert "adapters" in refused(2, *words, "--run", run_folder)


def test_settings_of_a_flow_model_reach_protocol_and_images(call: Call, tmp_path: Path) -> None:
    words = ("generate", "--prompts", metadata(tmp_path), "--layout", "geneval", "--n", 1, "--backbone", "tiny_flow")
    images = []
    for steps in (1, 16):
        out = tmp_path / str(steps)
        call(*words, "--out", out, f"backbone_options.quality_steps={steps}")
        assert json.loads((out / "protocol.json").read_text())["scores"]["images"]["options"]["quality_steps"] == steps
        with Image.open(out / "images" / "00000" / "samples" / "00000.png") as image:
            images.append(image.convert("RGB").tobytes())
    assert images[0] != images[1]


def test_too_large_a_batch_says_so_and_keeps_what_is_drawn(
    call: Call, refused: Callable[..., str], tmp_path: Path, monkeypatch: Any
) -> None:
    from asg_core.tiny.backbone import TinyBackbone

    real, sizes = TinyBackbone.generate, []

    def generate(self: TinyBackbone, requests: Any, *rest: Any) -> Any:
        sizes.append(len(requests))
        if len(sizes) == 2:
            raise RuntimeError("CUDA out of memory")
        return real(self, requests, *rest)

    monkeypatch.setattr(TinyBackbone, "generate", generate)
    words = ("generate", "--prompts", metadata(tmp_path), "--layout", "geneval", "--n", 2, "--out", tmp_path / "x")
    assert "lower --batch-size" in refused(7, *words, "--batch-size", 3)
    assert json.loads(call(*words, "--batch-size", 1, "--json"))["kept"] == 3
    assert sizes == [3, 1, 1]


def test_half_a_layout_command_is_refused(refused: Callable[..., str], tmp_path: Path) -> None:
    file = metadata(tmp_path)
    assert "go together" in refused(2, "generate", "--prompts", file)
    assert "go together" in refused(2, "generate", "--layout", "geneval")
    assert "one or the other" in refused(2, "generate", "a circle", "--prompts", file, "--layout", "geneval")
    (tmp_path / "0.txt").write_text("a circle")
    assert "Did you mean 'geneval'?" in refused(2, "generate", "--prompts", file, "--layout", "genevl")
    assert "reads 1 or 4" in refused(2, "generate", "--prompts", tmp_path, "--layout", "dpg", "--n", 2)


def test_the_preset_prints_the_whole_command(call: Call, refused: Callable[..., str]) -> None:
    words = ("eval", "--preset", "paper", "--backbone", "bagel", "--weights", "my weights", "seed=3")
    printed = json.loads(call(*words, "--json"))
    names = ["MMMU", "MMBench", "TextVQA", "SEED", "RealWorldQA", "MM-Vet", "MME-P", "MME-C"]
    assert [metric["name"] for metric in printed["metrics"]] == names
    assert all(metric[key] for metric in printed["metrics"] for key in ("task", "split", "value", "judge", "prompt"))
    argv = shlex.split(printed["command"])
    options = dict(zip(argv[3::2], argv[4::2], strict=False))
    assert argv[:3] == ["python", "-m", "lmms_eval"]
    assert options["--model"] == "asg"
    assert dict(word.split("=", 1) for word in options["--model_args"].split(",")) == {
        "backbone": "bagel",
        "weights": "my weights",
        "seed": "3",
        "several_images": "join",
        "output_dir": "scores",
    }
    assert options["--tasks"].split(",") == list(dict.fromkeys(metric["task"] for metric in printed["metrics"]))
    assert printed["command"] in call(*words)
    assert "Did you mean 'paper'?" in refused(2, "eval", "--preset", "papr")
    assert "commas" in refused(2, "eval", "--preset", "paper", "--weights", "a,b")
