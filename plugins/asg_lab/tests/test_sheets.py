"""Layouts on the embedded backbone: what each scorer opens is there, once, and drawn from its own seed."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path

import pytest
from PIL import Image

from asg_core.backbones.interface import Backbone, ImageRequest, ImageSampling
from asg_core.config.schema import RunConfig
from asg_core.errors import CapabilityError, ConfigError
from asg_core.evaluation.protocol import Items, Protocol, ProtocolError, make_protocol
from asg_lab import sheets
from asg_lab.layouts import LAYOUTS, Sheet, sample_seed
from asg_lab.prompt_files import Prompt
from asg_lab.sheets import claim_folder, draw_sheets

SAMPLING = ImageSampling("quality")
TEXTS = ["a red circle", "a red square", "two green triangles"]


def prompts(texts: Sequence[str] = TEXTS) -> list[Prompt]:
    return [
        Prompt(text, f"{i:05d}", record={"tag": "colors", "include": [], "prompt": text})
        for i, text in enumerate(texts)
    ]


def pixels(file: Path) -> bytes:
    with Image.open(file) as image:
        return image.convert("RGB").tobytes()


def draw(backbone: Backbone, layout: str, out: Path, n: int, given: Sequence[Prompt], batch: int = 8) -> int:
    sheets = LAYOUTS[layout].sheets(given, n, 0, "TASK")
    for path, text in LAYOUTS[layout].texts(out, given, sheets).items():
        (out / path).parent.mkdir(parents=True, exist_ok=True)
        (out / path).write_text(text)
    return draw_sheets(backbone, None, sheets, out, SAMPLING, batch)


def test_geneval_finds_metadata_and_samples_in_every_numbered_folder(tiny: Backbone, tmp_path: Path) -> None:
    draw(tiny, "geneval", tmp_path, 2, prompts())
    root = tmp_path / "images"
    found = {}
    for folder in root.iterdir():
        assert folder.is_dir()
        assert folder.name.isdigit()
        # the scorer parses metadata.jsonl as one document
        metadata = json.loads((folder / "metadata.jsonl").read_text())
        names = sorted(p.name for p in (folder / "samples").iterdir())
        assert all(re.fullmatch(r"\d+\.png", name) for name in names)
        found[folder.name] = (metadata["tag"], metadata["prompt"], names)
    assert found == {f"{i:05d}": ("colors", text, ["00000.png", "00001.png"]) for i, text in enumerate(TEXTS)}


def test_a_dpg_grid_shows_the_samples_row_by_row(tiny: Backbone, tmp_path: Path) -> None:
    given = [Prompt(TEXTS[0], "whoops9")]
    draw(tiny, "dpg", tmp_path, 4, given)
    draw(tiny, "geneval", tmp_path / "single", 4, prompts(TEXTS[:1]))
    with Image.open(tmp_path / "images" / "whoops9.png") as grid:
        side = grid.width // 2
        boxes = [(0, 0), (side, 0), (0, side), (side, side)]
        shown = [grid.crop((x, y, x + side, y + side)).convert("RGB").tobytes() for x, y in boxes]
    single = tmp_path / "single" / "images" / "00000" / "samples"
    assert shown == [pixels(single / f"0000{k}.png") for k in range(4)]
    assert len(set(shown)) == 4


def test_wise_finds_one_image_under_the_prompt_id(tiny: Backbone, tmp_path: Path) -> None:
    draw(tiny, "wise", tmp_path, 1, [Prompt("tea", "401"), Prompt("ice", "7")])
    assert sorted(p.name for p in (tmp_path / "images").iterdir()) == ["401.png", "7.png"]


def test_lmms_gets_files_by_document_and_answers_that_name_them(tiny: Backbone, tmp_path: Path) -> None:
    draw(tiny, "lmms", tmp_path, 2, prompts())
    document = json.loads((tmp_path / "responses.json").read_text())
    assert document["model_configs"]["task"] == "TASK"
    assert [row["doc_id"] for row in document["logs"]] == [0, 1, 2]
    # lmms-eval's model from_log answers with resps[0][0]
    answers = [json.loads(row["resps"][0][0]) for row in document["logs"]]
    for i, answer in enumerate(answers):
        assert [Path(file) for file in answer["images"]] == [
            tmp_path.resolve() / "images" / "TASK" / f"{i:04d}_s{k}.png" for k in range(2)
        ]
        assert all(os.path.isfile(file) for file in answer["images"])


def test_a_seed_belongs_to_the_prompt_and_the_sample(tiny: Backbone, tmp_path: Path) -> None:
    draw(tiny, "geneval", tmp_path / "a", 2, prompts(), batch=1)
    draw(tiny, "geneval", tmp_path / "b", 2, prompts(TEXTS[::-1]), batch=5)
    for i in range(3):
        for k in range(2):
            first = tmp_path / "a" / "images" / f"{i:05d}" / "samples" / f"0000{k}.png"
            second = tmp_path / "b" / "images" / f"{2 - i:05d}" / "samples" / f"0000{k}.png"
            assert pixels(first) == pixels(second)
    seeds = [sample_seed(s, t, r, k) for s in (0, 1) for t in TEXTS for r in (0, 1) for k in (0, 1)]
    assert len(set(seeds)) == len(seeds)


def test_the_image_is_the_models_own_for_that_seed(tiny: Backbone, tmp_path: Path) -> None:
    draw(tiny, "wise", tmp_path, 1, [Prompt(TEXTS[0], "1")])
    drawn = tiny.generate([ImageRequest(TEXTS[0], sample_seed(0, TEXTS[0], 0, 0))], SAMPLING, None)[0]
    assert pixels(tmp_path / "images" / "1.png") == drawn.image.tobytes()


def test_finished_files_are_not_drawn_again_and_the_rest_comes_out_as_it_would_have(
    tiny: Backbone, tmp_path: Path
) -> None:
    assert draw(tiny, "geneval", tmp_path, 2, prompts()) == 6
    files = sorted(tmp_path.rglob("*.png"))
    before = {file: (pixels(file), file.stat().st_mtime_ns) for file in files}
    files[3].unlink()
    assert draw(tiny, "geneval", tmp_path, 2, prompts()) == 1
    assert {file: pixels(file) for file in files} == {file: first for file, (first, _) in before.items()}
    kept = [file for file in files if file != files[3]]
    assert [file.stat().st_mtime_ns for file in kept] == [before[file][1] for file in kept]
    assert draw(tiny, "geneval", tmp_path, 2, prompts()) == 0


def test_a_file_that_was_half_written_when_the_disk_filled_up_does_not_count(
    tiny: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw(tiny, "geneval", tmp_path / "whole", 1, prompts())
    real, calls = Image.Image.save, []

    def save(image: Image.Image, to: Path, **options: str) -> None:
        calls.append(to)
        if len(calls) == 2:
            Path(to).write_bytes(b"\x89PNG half")
            raise OSError(28, "No space left on device")
        real(image, to, **options)

    monkeypatch.setattr(Image.Image, "save", save)
    with pytest.raises(OSError, match="No space"):
        draw(tiny, "geneval", tmp_path / "cut", 1, prompts())
    root = tmp_path / "cut" / "images"
    assert [p.name for p in sorted(root.rglob("*.png"))] == ["00000.png"]
    assert not [p for p in root.rglob("*") if p.is_file() and p.name not in ("metadata.jsonl", "00000.png")]
    assert draw(tiny, "geneval", tmp_path / "cut", 1, prompts()) == 2
    for file in (tmp_path / "whole" / "images").rglob("*.png"):
        assert pixels(root / file.relative_to(tmp_path / "whole" / "images")) == pixels(file)


def test_a_grid_of_images_that_are_not_square_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CapabilityError, match="grid"):
        sheets._grid([Image.new("RGB", (8, 4))] * 4)
    assert sheets._grid([Image.new("RGB", (8, 4))]).size == (8, 4)


def protocol(backbone: Backbone, **changes: object) -> Protocol:
    config = RunConfig(**{"seed": 0, **changes})
    return make_protocol(backbone, config, Items("p.jsonl", "0", 1), trained=False, sampling={}, judge=None)


def test_images_of_two_protocols_never_share_a_folder(tiny: Backbone, tmp_path: Path) -> None:
    claim_folder(tmp_path / "a", protocol(tiny))
    claim_folder(tmp_path / "a", protocol(tiny))
    with pytest.raises(ProtocolError) as raised:
        claim_folder(tmp_path / "a", protocol(tiny, seed=1))
    assert "seed: 0 / 1" in raised.value.why
    trained = {**protocol(tiny), "adapters": {"generator": "x"}}
    with pytest.raises(ProtocolError, match="another model"):
        claim_folder(tmp_path / "a", trained)
    (tmp_path / "b" / "images").mkdir(parents=True)
    with pytest.raises(ProtocolError, match="images already"):
        claim_folder(tmp_path / "b", protocol(tiny))


@pytest.mark.parametrize(
    ("layout", "form", "n", "record", "key", "why"),
    [
        ("geneval", "lines", 4, {}, "0", "this is lines"),
        ("geneval", "jsonl", 4, {"prompt": "x"}, "0", '"tag"'),
        ("dpg", "texts", 3, {}, "0", "reads 1 or 4"),
        ("dpg", "texts", 4, {}, "a.b", "dot"),
        ("wise", "json", 4, {}, "1", "reads 1"),
    ],
)
def test_what_a_scorer_could_not_read_is_refused(
    layout: str, form: str, n: int, record: dict[str, str], key: str, why: str
) -> None:
    with pytest.raises(ConfigError) as raised:
        LAYOUTS[layout].require(form, [Prompt("x", key, record=record)], n)  # type: ignore[arg-type]
    assert why in raised.value.why


def test_one_sheet_may_span_batches(tiny: Backbone, tmp_path: Path) -> None:
    sheet = Sheet(Path("x.png"), "a red circle", (1, 2, 3, 4))
    draw_sheets(tiny, None, [sheet], tmp_path / "a", SAMPLING, 3)
    draw_sheets(tiny, None, [sheet], tmp_path / "b", SAMPLING, 4)
    assert pixels(tmp_path / "a" / "x.png") == pixels(tmp_path / "b" / "x.png")
