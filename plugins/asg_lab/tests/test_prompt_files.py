"""Prompt files: every benchmark's own format is read as it is, and what is wrong with a file is named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from asg_core.errors import ConfigError
from asg_lab.prompt_files import read_prompts


def test_lines_of_json_keep_their_number_and_their_object(tmp_path: Path) -> None:
    rows = [{"tag": "counting", "include": [], "prompt": f"a photo of {i} cats"} for i in range(11)]
    file = tmp_path / "evaluation_metadata.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    form, prompts = read_prompts(file)
    assert form == "jsonl"
    assert [p.key for p in prompts] == [f"{i:05d}" for i in range(11)]
    assert [dict(p.record) for p in prompts] == rows
    assert prompts[10].text == "a photo of 10 cats"


def test_a_folder_of_texts_goes_by_name(tmp_path: Path) -> None:
    (tmp_path / "whoops9.txt").write_text("a cat \n")
    (tmp_path / "0.txt").write_text("Straße")
    (tmp_path / "notes.md").write_text("no prompt")
    form, prompts = read_prompts(tmp_path)
    assert (form, [(p.key, p.text) for p in prompts]) == ("texts", [("0", "Straße"), ("whoops9", "a cat")])


def test_a_json_list_goes_by_prompt_id(tmp_path: Path) -> None:
    file = tmp_path / "wise.json"
    file.write_text(json.dumps([{"Prompt": "tea", "prompt_id": 401}, {"Prompt": "ice", "prompt_id": 7}]))
    form, prompts = read_prompts(file)
    assert (form, [(p.key, p.text) for p in prompts]) == ("json", [("401", "tea"), ("7", "ice")])


def test_plain_lines_leave_empty_ones_out_and_count_repeats(tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("a cat\n\na dog\na cat\n")
    form, prompts = read_prompts(file)
    assert form == "lines"
    assert [(p.key, p.text, p.repeat) for p in prompts] == [
        ("00000", "a cat", 0),
        ("00001", "a dog", 0),
        ("00002", "a cat", 1),
    ]


@pytest.mark.parametrize(
    ("name", "text", "why"),
    [
        ("a.jsonl", '{"prompt": "x"}\n\n{"prompt": "y"}\n', "line 2"),
        ("a.jsonl", '{"prompt": "x"}\n{"text": "y"}\n', "line 2 has no text 'prompt'"),
        ("a.jsonl", '{"prompt": " "}\n', "is empty"),
        ("a.json", '[{"Prompt": "x"}]', 'entry 1 has no whole number "prompt_id"'),
        ("a.json", '[{"Prompt": "x", "prompt_id": 1}, {"Prompt": "y", "prompt_id": 1}]', "'1' is there 2 times"),
        ("a.json", '{"Prompt": "x"}', "not a list"),
        ("a.txt", "\n\n", "no prompt"),
    ],
)
def test_what_is_wrong_with_a_file_is_named(tmp_path: Path, name: str, text: str, why: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError) as raised:
        read_prompts(tmp_path / name)
    assert why in raised.value.why


def test_a_missing_file_is_an_error_of_the_command_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be used"):
        read_prompts(tmp_path / "nothing.txt")
