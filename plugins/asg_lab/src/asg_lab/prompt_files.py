"""Prompt files as benchmarks ship them: GenEval's JSON lines, DPG-Bench's folder of texts, WISE's JSON, plain lines."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from asg_core.errors import ConfigError

Format = Literal["lines", "jsonl", "texts", "json"]


@dataclass(frozen=True)
class Prompt:
    """One prompt of a file.

    Attributes:
        text: what to draw.
        key: its name in the file: the position from 0 as five digits, a text file's stem, or the ``prompt_id``.
        repeat: how often the same text came before it in the file.
        record: the JSON object it came from, empty for text.
    """

    text: str
    key: str
    repeat: int = 0
    record: Mapping[str, Any] = field(default_factory=dict)


def read_prompts(path: Path) -> tuple[Format, list[Prompt]]:
    """The prompts of a file or folder and the format it has.

    * ``texts``: a folder of ``*.txt``, one prompt in each, by name (DPG-Bench);
    * ``jsonl``: ``*.jsonl``, one object with "prompt" on each line (GenEval);
    * ``json``: ``*.json``, a list of objects with "Prompt" and "prompt_id" (WISE);
    * ``lines``: any other file, one prompt on each line; empty lines are left out.

    Raises:
        ConfigError: missing, malformed or empty; names the line or entry.
    """
    form = _format(path)
    readers: dict[Format, Callable[[Path], list[Prompt]]] = {
        "texts": _texts,
        "jsonl": _json_lines,
        "json": _json_list,
        "lines": _lines,
    }
    try:
        prompts = readers[form](path)
    except (OSError, UnicodeDecodeError) as error:
        raise _bad(path, str(error)) from error
    if not prompts:
        raise _bad(path, "it holds no prompt")
    keys = Counter(prompt.key for prompt in prompts)
    if (twice := keys.most_common(1)[0])[1] > 1:
        raise _bad(path, f"{twice[0]!r} is there {twice[1]} times")
    seen: Counter[str] = Counter()
    counted = []
    for prompt in prompts:
        if not prompt.text:
            raise _bad(path, f"the prompt {prompt.key!r} is empty")
        counted.append(Prompt(prompt.text, prompt.key, seen[prompt.text], prompt.record))
        seen[prompt.text] += 1
    return form, counted


def _format(path: Path) -> Format:
    if path.is_dir():
        return "texts"
    return {".jsonl": "jsonl", ".json": "json"}.get(path.suffix, "lines")  # type: ignore[return-value]


def _texts(folder: Path) -> list[Prompt]:
    return [Prompt(file.read_text(encoding="utf-8").strip(), file.stem) for file in sorted(folder.glob("*.txt"))]


def _lines(file: Path) -> list[Prompt]:
    texts = [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
    return [Prompt(text, f"{i:05d}") for i, text in enumerate(filter(None, texts))]


def _json_lines(file: Path) -> list[Prompt]:
    prompts = []
    for i, line in enumerate(file.read_text(encoding="utf-8").rstrip().split("\n")):
        record = _object(file, f"line {i + 1}", line)
        prompts.append(Prompt(_text(file, f"line {i + 1}", record, "prompt"), f"{i:05d}", record=record))
    return prompts


def _json_list(file: Path) -> list[Prompt]:
    try:
        records = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise _bad(file, str(error)) from error
    if not isinstance(records, list):
        raise _bad(file, "it is not a list")
    prompts = []
    for i, record in enumerate(records):
        where = f"entry {i + 1}"
        if not isinstance(record, dict) or type(record.get("prompt_id")) is not int:
            raise _bad(file, f'{where} has no whole number "prompt_id"')
        prompts.append(Prompt(_text(file, where, record, "Prompt"), str(record["prompt_id"]), record=record))
    return prompts


def _object(file: Path, where: str, text: str) -> dict[str, Any]:
    try:
        record = json.loads(text)
    except ValueError as error:
        raise _bad(file, f"{where}: {error}") from error
    if not isinstance(record, dict):
        raise _bad(file, f"{where} is not an object")
    return record


def _text(file: Path, where: str, record: Mapping[str, Any], key: str) -> str:
    if not isinstance(record.get(key), str):
        raise _bad(file, f"{where} has no text {key!r}")
    return str(record[key]).strip()


def _bad(path: Path, why: str) -> ConfigError:
    return ConfigError(
        f"the prompts {path} cannot be used",
        why,
        "give GenEval's evaluation_metadata.jsonl, a folder of .txt, WISE's .json, or a file with one prompt a line",
    )
