"""The model card says what a run was, and nothing of the machine; publishing sends the card and PEFT files only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import HfApi
from huggingface_hub.errors import HFValidationError

from asg_core import RunConfig, Trainer
from asg_core.cli import main
from asg_core.errors import RunFolderError
from asg_core.runs.publish import files_to_publish


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two steps on a folder whose path must stay private."""
    from asg_core.backbones.registry import find_manifest, resolve

    images = tmp_path_factory.mktemp("secret-place") / "holiday"
    images.mkdir()
    resolve(str(find_manifest("tiny").images))(images, 0)
    (images / "broken.png").write_bytes(b"no picture")
    config = RunConfig.model_validate(
        {
            "images": images,
            "out": tmp_path_factory.mktemp("out") / "first",
            "steps": 2,
            "images_per_step": 2,
            "evaluate": False,
            "device": "cpu",
            "schedule": {"mode": "understanding"},
            "ask": {"max_new_tokens": 16},
            "solve": {"max_new_tokens": 4},
        }
    )
    return Trainer(config).run().out


@pytest.fixture(scope="module")
def card(run: Path) -> str:
    return (run / "adapters" / "README.md").read_text(encoding="utf-8")


def test_a_card_names_base_data_settings_and_licence(card: str):
    assert "# first" in card
    assert "over **tiny**" in card
    assert "images of the folder `holiday`, 1 files set aside as unusable" in card
    assert "2 steps, seed 0" in card
    assert "* `schedule.mode: understanding`" in card
    assert "Of the base: Apache-2.0" in card


def test_a_card_of_an_unmeasured_run_claims_nothing(card: str):
    assert "Nothing here shows that the adapters are better" in card


def test_a_card_holds_no_path_of_the_machine(card: str, run: Path):
    assert "secret-place" not in card
    assert str(run.parent) not in card


def test_what_is_published_is_the_card_and_the_adapters(run: Path):
    (run / "adapters" / "solver" / "optimizer.bin").write_bytes(b"private")
    (run / "adapters" / "notes.txt").write_text("private")
    pair = ("adapter_config.json", "adapter_model.safetensors")
    assert files_to_publish(run) == [
        "README.md",
        *(f"{role}/{name}" for role in ("proposer", "solver", "generator") for name in pair),
    ]


def test_an_unfinished_run_has_nothing_to_publish(tmp_path: Path):
    (tmp_path / "adapters" / "solver").mkdir(parents=True)
    with pytest.raises(RunFolderError, match="nothing to publish"):
        files_to_publish(tmp_path)


def test_nothing_is_sent_without_the_flag(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("the hub was called")

    monkeypatch.setattr(HfApi, "create_repo", refuse)
    monkeypatch.setattr(HfApi, "upload_folder", refuse)
    assert main(["push", "--run", str(run), "--to", "me/first"]) == 0
    assert "nothing was sent" in capsys.readouterr().out


def test_with_the_flag_exactly_these_files_are_sent_and_private_by_default(run: Path, monkeypatch: pytest.MonkeyPatch):
    calls: dict[str, dict[str, Any]] = {}

    def create(self: HfApi, name: str, **kwargs: Any) -> str:
        calls["create"] = {"name": name, **kwargs}
        return "address"

    monkeypatch.setattr(HfApi, "create_repo", create)
    monkeypatch.setattr(HfApi, "upload_folder", lambda self, **kwargs: calls.update(upload=kwargs))
    assert main(["push", "--run", str(run), "--to", "me/first", "--yes"]) == 0
    assert calls["create"] == {"name": "me/first", "private": True, "exist_ok": True}
    assert calls["upload"]["allow_patterns"] == files_to_publish(run)


def test_a_refusal_of_the_hub_is_one_typed_error(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def refuse(self: HfApi, name: str, **kwargs: Any) -> str:
        raise HFValidationError("bad name")

    monkeypatch.setattr(HfApi, "create_repo", refuse)
    assert main(["push", "--run", str(run), "--to", "a/b/c", "--yes"]) == 1
    assert "a/b/c was not published" in capsys.readouterr().err
