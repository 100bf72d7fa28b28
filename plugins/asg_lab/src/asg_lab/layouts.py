"""The folders that outside scorers of drawn images read, file by file (docs/benchmarks.md has the sources).

========  ==========================================  ==============================================================
layout    prompts                                     ``images/``
========  ==========================================  ==============================================================
geneval   jsonl with "tag" and "include" or           ``00000/metadata.jsonl`` (the prompt's line) and
          "exclude"                                   ``00000/samples/00000.png`` ...
dpg       folder of texts                             ``NAME.png``, a 2 x 2 grid of four samples, or one sample
wise      json with "prompt_id"                       ``ID.png``
lmms      any                                         ``TASK/0000_s0.png`` ..., TASK the prompt file's name; and
                                                      ``responses.json`` beside ``images/``
========  ==========================================  ==============================================================
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from asg_core.config.seeding import derive_seed
from asg_core.errors import ConfigError
from asg_lab.prompt_files import Format, Prompt

IMAGES = "images"


@dataclass(frozen=True)
class Sheet:
    """One image file and the samples it shows.

    Attributes:
        file: path below the output folder.
        prompt: what to draw.
        seeds: of the samples; more than one are shown as a grid, row by row.
    """

    file: Path
    prompt: str
    seeds: tuple[int, ...]


@dataclass(frozen=True)
class Layout:
    """How one scorer wants its images.

    Attributes:
        name: as in ``--layout``.
        scorer: what reads it.
        formats: of prompt files it can be made from; None takes any.
        usual: samples per prompt in the benchmark's own protocol.
        counts: numbers of samples per prompt that the scorer can read; None takes any.
        sheets: (prompts, n, seed, name of the prompt file) -> the images.
        texts: (output folder, prompts, sheets) -> small text files by path below the output folder.
        lacks: why the scorer cannot judge a prompt, None if it can.
    """

    name: str
    scorer: str
    formats: tuple[Format, ...] | None
    usual: int
    counts: tuple[int, ...] | None
    sheets: Callable[[Sequence[Prompt], int, int, str], list[Sheet]]
    texts: Callable[[Path, Sequence[Prompt], Sequence[Sheet]], Mapping[Path, str]]
    lacks: Callable[[Prompt], str | None]

    def require(self, form: Format, prompts: Sequence[Prompt], n: int) -> None:
        """Raise ConfigError unless the scorer can read ``n`` images of each of these prompts."""
        if self.formats is not None and form not in self.formats:
            raise ConfigError(
                f"--layout {self.name} cannot be made from these prompts",
                f"{self.scorer} needs what only its own prompt file has ({', '.join(self.formats)}); this is {form}",
                "give --prompts the file that the benchmark ships",
            )
        if self.counts is not None and n not in self.counts:
            raise ConfigError(
                f"--layout {self.name} cannot hold {n} images of a prompt",
                f"{self.scorer} reads {' or '.join(map(str, self.counts))}",
                f"--n {self.usual}; for more, run again with another seed and --out",
            )
        for prompt in prompts:
            if (lacking := self.lacks(prompt)) is not None:
                raise ConfigError(
                    f"--layout {self.name} cannot be made from these prompts",
                    f"{prompt.key!r} {lacking}",
                    "give --prompts the file that the benchmark ships",
                )


def sample_seed(seed: int, text: str, repeat: int, sample: int) -> int:
    """The seed of one image: of the run's seed, the prompt's text, how often it came before, and the sample."""
    return derive_seed(seed, "generate", text, repeat, sample)


def task_file(task: str, index: int, sample: int) -> Path:
    """Where the ``lmms`` layout and the lmms-eval model keep an image."""
    return Path(IMAGES, task, f"{index:04d}_s{sample}.png")


def response(files: Sequence[Path]) -> str:
    """What lmms-eval's image tasks take for an answer."""
    return json.dumps({"text": "", "images": [str(file) for file in files]})


def _one_file_per_sample(
    prompts: Sequence[Prompt], n: int, seed: int, name: Callable[[int, Prompt, int], Path]
) -> list[Sheet]:
    return [
        Sheet(name(i, p, k), p.text, (sample_seed(seed, p.text, p.repeat, k),))
        for i, p in enumerate(prompts)
        for k in range(n)
    ]


def _geneval(prompts: Sequence[Prompt], n: int, seed: int, _: str) -> list[Sheet]:
    return _one_file_per_sample(prompts, n, seed, lambda _, p, k: Path(IMAGES, p.key, "samples", f"{k:05d}.png"))


def _wise(prompts: Sequence[Prompt], n: int, seed: int, _: str) -> list[Sheet]:
    return _one_file_per_sample(prompts, n, seed, lambda _, p, __: Path(IMAGES, f"{p.key}.png"))


def _lmms(prompts: Sequence[Prompt], n: int, seed: int, task: str) -> list[Sheet]:
    return _one_file_per_sample(prompts, n, seed, lambda i, _, k: task_file(task, i, k))


def _dpg(prompts: Sequence[Prompt], n: int, seed: int, _: str) -> list[Sheet]:
    return [
        Sheet(Path(IMAGES, f"{p.key}.png"), p.text, tuple(sample_seed(seed, p.text, p.repeat, k) for k in range(n)))
        for p in prompts
    ]


def _metadata(_: Path, prompts: Sequence[Prompt], __: Sequence[Sheet]) -> dict[Path, str]:
    return {Path(IMAGES, p.key, "metadata.jsonl"): json.dumps(dict(p.record)) + "\n" for p in prompts}


def _responses(out: Path, prompts: Sequence[Prompt], sheets: Sequence[Sheet]) -> dict[Path, str]:
    n = len(sheets) // len(prompts)
    logs: list[dict[str, Any]] = []
    for i in range(len(prompts)):
        files = [(out / sheet.file).resolve() for sheet in sheets[i * n : (i + 1) * n]]
        logs.append({"doc_id": i, "resps": [[response(files)]]})
    task = sheets[0].file.parent.name
    args = {"model": "asg", "model_args": "", "limit": None}
    document = {"args": args, "model_configs": {"task": task}, "logs": logs}
    return {Path("responses.json"): json.dumps(document, indent=1) + "\n"}


def _no_texts(_: Path, __: Sequence[Prompt], ___: Sequence[Sheet]) -> dict[Path, str]:
    return {}


def _lacks_in_geneval(prompt: Prompt) -> str | None:
    if isinstance(prompt.record.get("tag"), str) and {"include", "exclude"} & prompt.record.keys():
        return None
    return 'has no "tag" with "include" or "exclude", by which the scorer judges'


def _lacks_in_dpg(prompt: Prompt) -> str | None:
    return "has a dot in its name, where the scorer cuts it off" if "." in prompt.key else None


def _lacks_nothing(_: Prompt) -> None:
    return None


LAYOUTS = {
    layout.name: layout
    for layout in (
        Layout("geneval", "GenEval's evaluate_images.py", ("jsonl",), 4, None, _geneval, _metadata, _lacks_in_geneval),
        Layout("dpg", "DPG-Bench's compute_dpg_bench.py", ("texts",), 4, (1, 4), _dpg, _no_texts, _lacks_in_dpg),
        Layout("wise", "WISE's scorer", ("json",), 1, (1,), _wise, _no_texts, _lacks_nothing),
        Layout("lmms", "lmms-eval", None, 1, None, _lmms, _responses, _lacks_nothing),
    )
}
