"""The lmms-eval model against a stand-in of lmms-eval's base class: what it answers is what the backbone says.

``test_lmms_eval.py`` runs it under lmms-eval itself, where that is installed.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from asg_core.backbones.interface import Backbone, Role, TextRequest, TextSampling
from asg_core.backbones.loading import load_backbone
from asg_core.cli import main
from asg_core.data.image_pool import ImagePool
from asg_core.errors import CapabilityError, ConfigError
from asg_core.runs.configuration import load_run_config, write_run_config
from asg_lab.lmms.requests import cut_at, one_image, text_sampling

MODULE = "asg_lab.lmms.model"
QUESTIONS = ["how many shapes are there?", "what color is the shape?"]


class _Base:
    """What lmms_eval.api.model.lmms documents: task_dict, cache_hook, rank and world size."""

    def __init__(self) -> None:
        self.task_dict: dict[str, Any] = {}
        self.cache_hook = SimpleNamespace(add_partial=lambda *_: None)
        self._rank, self._world_size = 0, 1


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    """A factory of the model, with the stand-in in place of lmms-eval."""
    for name in ("lmms_eval", "lmms_eval.api", "lmms_eval.api.model"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    sys.modules["lmms_eval.api.model"].lmms = _Base  # type: ignore[attr-defined]
    monkeypatch.delitem(sys.modules, MODULE, raising=False)
    module = importlib.import_module(MODULE)
    yield lambda **args: module.AsgModel(**{"device": "cpu", **args})
    sys.modules.pop(MODULE, None)


@pytest.fixture
def pictures(scenes: Path) -> list[Image.Image]:
    return [item.image for item in ImagePool(scenes, 0, lambda *_: None).take(2)]


def requests(model: Any, images: list[Any], texts: list[str] = QUESTIONS, **generation: Any) -> list[Any]:
    """Requests of a task of two documents, as ConfigurableTask builds them."""
    visuals = [image if isinstance(image, list) else [image] for image in images]
    model.task_dict["two"] = {"test": visuals}
    settings = {"max_new_tokens": 4, "until": ["ASSISTANT:"], **generation}
    return [SimpleNamespace(args=(text, settings, lambda doc: doc, i, "two", "test")) for i, text in enumerate(texts)]


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch

    folder = tmp_path_factory.mktemp("trained")
    backbone = load_backbone("tiny", device="cpu")
    generator = torch.Generator().manual_seed(0)
    write_run_config(load_run_config(None, ["backbone=tiny", "seed=5", "device=cpu"]), folder / "config.yaml")
    for role in Role:
        with torch.no_grad():
            for parameter in backbone.trainable(role).values():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
        backbone.save_role(role, folder / "adapters" / role.value)
    return folder


def test_a_local_task_of_two_documents_gets_the_backbones_greedy_answers(
    make: Callable[..., Any], tiny: Backbone, pictures: list[Image.Image]
) -> None:
    asked = [TextRequest(text, image, 0) for text, image in zip(QUESTIONS, pictures, strict=True)]
    wanted = [sample.text.strip() for sample in tiny.solve(asked, TextSampling(4, 0.0), None)]
    assert all(wanted)
    for batch_size in (1, 2):
        model = make(backbone="tiny", batch_size=batch_size)
        assert model.is_simple
        assert model.generate_until(requests(model, pictures)) == wanted


def test_with_a_run_the_evolved_solver_answers(
    make: Callable[..., Any], run_folder: Path, pictures: list[Image.Image]
) -> None:
    trained = make(run=str(run_folder))
    base = make(backbone="tiny")
    given = [model.generate_until(requests(model, pictures, max_new_tokens=12)) for model in (trained, base)]
    asked = [TextRequest(text, image, 0) for text, image in zip(QUESTIONS, pictures, strict=True)]
    wanted = trained.opened.backbone.solve(asked, TextSampling(12, 0.0), Role.SOLVER)
    assert given[0] == [sample.text.strip() for sample in wanted]
    assert given[0] != given[1]


def test_sampled_answers_depend_on_document_repeat_and_seed_not_on_the_batch(
    make: Callable[..., Any], pictures: list[Image.Image]
) -> None:
    def answers(seed: int, batch_size: int) -> list[str]:
        model = make(backbone="tiny", seed=seed, batch_size=batch_size)
        wanted = requests(model, pictures, max_new_tokens=12, temperature=3.0, do_sample=True)
        return list(model.generate_until([request for request in wanted for _ in range(3)]))

    first = answers(0, 2)
    assert len(set(first[:3])) > 1
    assert first == answers(0, 6)
    assert first != answers(1, 6)


def test_text_alone_and_joined_images_reach_the_backbone(
    make: Callable[..., Any], tiny: Backbone, pictures: list[Image.Image]
) -> None:
    model = make(backbone="tiny", several_images="join")
    given = model.generate_until(requests(model, [[], pictures]))
    joined = Image.new("RGB", (64, 32))
    joined.paste(pictures[0], (0, 0))
    joined.paste(pictures[1], (32, 0))
    asked = [TextRequest(QUESTIONS[0], None, 0), TextRequest(QUESTIONS[1], joined, 0)]
    assert given == [s.text.strip() for s in tiny.solve(asked, TextSampling(4, 0.0), None)]
    model = make(backbone="tiny")
    with pytest.raises(CapabilityError, match="shows 2 images"):
        model.generate_until(requests(model, [[], pictures]))


def test_drawn_images_are_those_of_the_lmms_layout_and_are_drawn_once(make: Callable[..., Any], tmp_path: Path) -> None:
    prompts = ["a red circle", "a blue square"]
    (tmp_path / "two.txt").write_text("\n".join(prompts))
    words = ["generate", "--prompts", str(tmp_path / "two.txt"), "--layout", "lmms", "--out", str(tmp_path / "a")]
    assert main([*words, "seed=3"]) == 0
    model = make(backbone="tiny", mode="generate", output_dir=str(tmp_path / "b"), seed=3)
    given = model.generate_until(requests(model, [[], []], prompts))
    for i, answer in enumerate(given):
        (file,) = json.loads(answer)["images"]
        assert Path(file) == tmp_path.resolve() / "b" / "images" / "two" / f"{i:04d}_s0.png"
        assert Path(file).read_bytes() == (tmp_path / "a" / "images" / "two" / f"{i:04d}_s0.png").read_bytes()
    times = [p.stat().st_mtime_ns for p in sorted((tmp_path / "b").rglob("*.png"))]
    assert model.generate_until(requests(model, [[], []], prompts)) == given
    assert [p.stat().st_mtime_ns for p in sorted((tmp_path / "b").rglob("*.png"))] == times
    with pytest.raises(CapabilityError, match="image to draw from"):
        model.generate_until(requests(model, [[Image.new("RGB", (8, 8))], []], prompts))
    with pytest.raises(ConfigError, match="folder for the images"):
        make(backbone="tiny", mode="generate")


def test_a_score_gets_its_protocol(
    make: Callable[..., Any], pictures: list[Image.Image], tmp_path: Path, capsys: Any, monkeypatch: Any
) -> None:
    monkeypatch.setenv("MODEL_VERSION", "judge-1")
    model = make(backbone="tiny", output_dir=str(tmp_path / "scores"))
    model.generate_until(requests(model, pictures))
    entry = json.loads((tmp_path / "scores" / "protocol.json").read_text())["scores"]["lmms-eval"]
    assert (entry["items"]["source"], entry["items"]["count"]) == ("lmms-eval tasks two", 2)
    assert entry["sampling"]["two"] == {"max_new_tokens": 4, "until": ["ASSISTANT:"]}
    assert entry["judge"]["MODEL_VERSION"] == "judge-1"
    assert "lmms-eval" in entry["versions"]
    model.generate_until(requests(model, pictures, [QUESTIONS[0], "another?"]))
    again = json.loads((tmp_path / "scores" / "protocol.json").read_text())["scores"]["lmms-eval"]
    assert again["items"]["sha256"] != entry["items"]["sha256"]
    silent = make(backbone="tiny")
    silent.generate_until(requests(silent, pictures))
    assert "output_dir=DIR" in capsys.readouterr().err


def test_what_the_interface_cannot_do_is_refused_not_faked(make: Callable[..., Any]) -> None:
    model = make(backbone="tiny")
    with pytest.raises(CapabilityError, match="loglikelihood"):
        model.loglikelihood([])
    with pytest.raises(CapabilityError, match="several rounds"):
        model.generate_until_multi_round([])
    with pytest.raises(ConfigError, match="mode=draw"):
        make(backbone="tiny", mode="draw")
    with pytest.raises(ConfigError, match="no_such_key"):
        make(backbone="tiny", no_such_key=1)


@pytest.mark.parametrize(
    ("generation", "sampling"),
    [
        ({}, TextSampling(9, 0.0)),
        ({"max_new_tokens": 3, "temperature": 0, "top_p": 0.9, "num_beams": 1}, TextSampling(3, 0.0)),
        ({"temperature": 0.2, "do_sample": False, "top_p": None}, TextSampling(9, 0.0)),
        ({"temperature": 0.7, "do_sample": True, "top_p": 1.0}, TextSampling(9, 0.7)),
        ({"image_aspect_ratio": "original", "until": ["x"]}, TextSampling(9, 0.0)),
    ],
)
def test_task_settings_become_sampling(generation: dict[str, Any], sampling: TextSampling) -> None:
    assert text_sampling(generation, 9) == sampling


@pytest.mark.parametrize(
    "generation", [{"num_beams": 3}, {"temperature": 1.0, "top_p": 0.9}, {"temperature": 1.0, "top_k": 50}]
)
def test_sampling_that_a_backbone_does_not_have_is_refused(generation: dict[str, Any]) -> None:
    with pytest.raises(CapabilityError, match=next(reversed(generation))):
        text_sampling(generation, 9)


def test_an_answer_ends_at_the_first_stop() -> None:
    assert cut_at("yes\n\nASSISTANT: no", ["ASSISTANT:", "\n\n"]) == "yes"
    assert cut_at("yes", "no") == "yes"
    assert cut_at("yes", None) == "yes"
    assert cut_at("yes", [""]) == "yes"


def test_images_are_joined_in_order_at_one_height() -> None:
    tall, wide = Image.new("RGB", (10, 40), "red"), Image.new("RGB", (40, 20), "blue")
    strip = one_image([tall, wide], "join")
    assert strip is not None
    assert strip.size == (10 + 80, 40)
    assert (strip.getpixel((5, 20)), strip.getpixel((50, 20))) == ((255, 0, 0), (0, 0, 255))
    with pytest.raises(CapabilityError, match="a str to look at"):
        one_image(["video.mp4"], "join")
