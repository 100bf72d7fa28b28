"""Protocols: whatever a score depends on makes it another protocol, by name; the adapters and the time do not."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from asg_core import RunConfig, load_backbone
from asg_core.backbones.interface import Backbone, Role
from asg_core.evaluation import protocol as module
from asg_core.evaluation.digests import file_digest, weights_digest
from asg_core.evaluation.items import EvalItem, EvaluationRequest
from asg_core.evaluation.protocol import (
    Items,
    Protocol,
    ProtocolError,
    differences,
    evaluation_protocol,
    make_protocol,
    read_protocols,
    record_protocol,
    require_same,
)
from asg_core.method import prompts

ITEMS = Items("prompts.jsonl", "abc", 2)


def made(backbone: Backbone, items: Items = ITEMS, trained: bool = False, **config: Any) -> Protocol:
    settings = RunConfig(backbone=backbone.manifest.name, **config)
    return make_protocol(backbone, settings, items, trained=trained, sampling={"n": 4}, judge="rules")


def test_equal_circumstances_give_one_protocol_as_plain_json(tiny: Backbone) -> None:
    first, second = made(tiny), made(tiny)
    require_same(first, second)
    assert json.loads(json.dumps(first)) == first
    assert first["prompt_rewriting"] == "none"
    assert (first["dtype"], first["seed"], first["judge"]) == ("float32", 0, "rules")
    assert first["versions"]["torch"] == torch.__version__


def test_a_change_of_anything_it_depends_on_is_named(tiny: Backbone, tiny_flow: Backbone) -> None:
    assert differences(made(tiny), made(tiny, seed=3)) == ["seed: 0 / 3"]
    assert differences(made(tiny), made(tiny, Items("prompts.jsonl", "abd", 2))) == ["items.sha256: abc / abd"]
    more = made(tiny_flow, backbone_options={"quality_steps": 99})
    assert differences(made(tiny_flow), more) == ["options.quality_steps: 16 / 99"]
    names = {line.split(":")[0] for line in differences(made(tiny), made(tiny_flow))}
    assert {"backbone", "template_sha256"} <= names
    half = load_backbone("tiny", dtype="bfloat16")
    assert differences(made(tiny), made(half)) == ["dtype: float32 / bfloat16"]


def test_the_methods_prompts_are_part_of_it(tiny: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    before = made(tiny)
    monkeypatch.setattr(prompts, "CAPTION_PROMPT", "Describe.")
    assert [line.split(":")[0] for line in differences(before, made(tiny))] == ["template_sha256"]


def test_package_versions_are_part_of_it(tiny: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    before = made(tiny)
    monkeypatch.setattr(module, "installed_version", lambda name: "9.9")
    assert "versions.peft: " + before["versions"]["peft"] + " / 9.9" in differences(before, made(tiny))


def test_adapters_and_time_are_recorded_but_may_differ(tiny: Backbone) -> None:
    base = made(tiny)
    assert base["adapters"] is None
    first = made(tiny, trained=True)
    with torch.no_grad():
        next(iter(tiny.trainable(Role.SOLVER).values())).add_(1e-3)
    second = made(tiny, trained=True)
    changed = [role for role in Role if first["adapters"][role] != second["adapters"][role]]
    assert changed == [Role.SOLVER]
    require_same(base, first)
    require_same(first, {**second, "written": "2001-01-01T00:00:00+00:00"})


def test_every_difference_is_in_the_message(tiny: Backbone) -> None:
    with pytest.raises(ProtocolError) as raised:
        require_same(made(tiny), {**made(tiny, seed=1), "judge": "another"})
    assert "seed: 0 / 1" in raised.value.why
    assert "judge: rules / another" in raised.value.why
    assert "adapters and written" in raised.value.fix
    assert raised.value.exit_code == 2


def test_a_key_that_only_one_has_is_a_difference(tiny: Backbone) -> None:
    assert differences(made(tiny), {**made(tiny), "extra": None}) == ["extra: absent / null"]


def test_the_items_of_an_evaluation_are_known_by_what_they_are_not_by_their_scores(tiny: Backbone) -> None:
    items = [EvalItem("s", "c", "1", 0.0), EvalItem("s", "c", "2", 1.0)]
    same = [EvalItem("s", "c", "2", 0.0), EvalItem("s", "c", "1", 0.5)]
    other = [EvalItem("s", "c", "1", 0.0), EvalItem("s", "d", "2", 1.0)]
    suite, request = str(tiny.manifest.evaluation), EvaluationRequest(tiny, trained=False)
    first, second, third = (evaluation_protocol(suite, request, i, RunConfig()) for i in (items, same, other))
    require_same(first, second)
    assert [line.split(":")[0] for line in differences(first, third)] == ["items.sha256"]
    assert first["judge"] == "asg_core.tiny.evaluation:evaluate"


def test_scores_of_a_folder_keep_their_own_protocols(tiny: Backbone, tmp_path: Path) -> None:
    assert read_protocols(tmp_path) == {}
    record_protocol(tmp_path, "before", made(tiny))
    record_protocol(tmp_path, "after", made(tiny, seed=1))
    assert [p["seed"] for p in read_protocols(tmp_path).values()] == [0, 1]
    for text in ("{", "[]", '{"schema": 1}', '{"schema": 2, "scores": {}}', '{"schema": 1, "scores": {"a": 1}}'):
        (tmp_path / "protocol.json").write_text(text)
        with pytest.raises(ProtocolError, match="cannot be read"):
            read_protocols(tmp_path)


def test_a_files_digest_is_sha256sum_and_a_folders_knows_names_and_ends(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("xy")
    (tmp_path / "b.txt").write_text("z")
    assert file_digest(tmp_path / "a.txt") == hashlib.sha256(b"xy").hexdigest()
    first = file_digest(tmp_path, "*.txt")
    (tmp_path / "c.md").write_text("left out")
    assert file_digest(tmp_path, "*.txt") == first
    (tmp_path / "a.txt").write_text("x")
    (tmp_path / "b.txt").write_text("yz")
    assert file_digest(tmp_path, "*.txt") != first


@pytest.mark.parametrize("position", [0, 70_000, -1])
def test_weights_are_told_apart_by_content_name_and_size(tmp_path: Path, position: int) -> None:
    assert weights_digest(None) is None
    data = bytearray(200_000)
    (tmp_path / "model.safetensors").write_bytes(data)
    first = weights_digest(tmp_path)
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache" / "downloaded").write_text("now")
    assert weights_digest(tmp_path) == first
    data[position] = 1
    (tmp_path / "model.safetensors").write_bytes(data)
    assert weights_digest(tmp_path) != first
    (tmp_path / "model.safetensors").write_bytes(bytes(200_001))
    assert weights_digest(tmp_path) != first


def test_a_retrained_checkpoint_of_the_same_size_is_told_apart_though_not_all_of_it_is_read(tmp_path: Path) -> None:
    size = 20 * 2**20
    (tmp_path / "model.safetensors").write_bytes(bytes(size))
    first = weights_digest(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(bytes(size // 2) + b"\1" * (size // 2))
    assert weights_digest(tmp_path) != first
