"""The model card says what a run was, and nothing of the machine, and lies beside the adapters and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from asg_core import RunConfig, Trainer


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


def test_the_folder_to_upload_holds_the_card_and_the_adapters_alone(run: Path):
    adapters = run / "adapters"
    pair = ("adapter_config.json", "adapter_model.safetensors")
    assert {str(file.relative_to(adapters)) for file in adapters.rglob("*") if file.is_file()} == {
        "README.md",
        *(f"{role}/{name}" for role in ("proposer", "solver", "generator") for name in pair),
    }
