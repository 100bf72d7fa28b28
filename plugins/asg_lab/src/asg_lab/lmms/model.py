"""Any backbone as a model of lmms-eval: ``lmms-eval --model asg --model_args backbone=bagel,weights=DIR,run=RUN``.

``mode=understanding`` answers questions with the Solver (``generate_until``); ``mode=generate`` draws with the
Generator and answers with the JSON text that lmms-eval's image tasks read. Without ``run`` both roles are the base
policy. ``loglikelihood`` is refused: a backbone scores token ids that it sampled, and none can be made from a text.
"""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from accelerate import PartialState
from lmms_eval.api.model import lmms

from asg_core.backbones.interface import ImageSampling, Role, TextRequest
from asg_core.config.seeding import derive_seed
from asg_core.errors import CapabilityError, ConfigError
from asg_core.evaluation.digests import digest_of
from asg_core.evaluation.protocol import Items, Protocol, make_protocol, record_protocol
from asg_core.runs.opening import open_model
from asg_lab.layouts import Sheet, response, sample_seed, task_file
from asg_lab.lmms.requests import cut_at, one_image, text_sampling
from asg_lab.sheets import claim_folder, draw_sheets

SCORE = "lmms-eval"
"""Name of the entry in the protocol.json of ``output_dir``."""

_JUDGE_VARIABLES = ("API_TYPE", "MODEL_VERSION")


class AsgModel(lmms):  # type: ignore[misc, unused-ignore]
    """A backbone with or without a run's roles, one image a question.

    Args:
        backbone: name of an installed backbone; with ``run`` it may be left out.
        weights: directory of its weights.
        run: a run folder, whose Solver answers and whose Generator draws.
        mode: "understanding" or "generate".
        output_dir: where protocol.json and, in mode generate, the images go; needed to draw.
        several_images: "refuse", or "join" to put the images of a question side by side.
        max_new_tokens: for tasks that set no limit.
        samples: images of a prompt in mode generate.
        seed: of everything random.
        batch_size: questions or images at a time; changes no answer.
        device: torch device; None takes a GPU where there is one.
        max_batch_size: not used; lmms-eval passes it.
        settings: other ``key=value`` settings of a run, e.g. ``backbone_options.quality_steps=30``.
    """

    is_simple = True

    def __init__(
        self,
        backbone: str | None = None,
        weights: str | None = None,
        run: str | None = None,
        mode: str = "understanding",
        output_dir: str | None = None,
        several_images: str = "refuse",
        max_new_tokens: int = 1024,
        samples: int = 1,
        seed: int | None = None,
        batch_size: int | str = 1,
        device: str | None = None,
        max_batch_size: int | None = None,
        **settings: Any,
    ) -> None:
        super().__init__()
        _one_of("mode", mode, ("understanding", "generate"))
        self.several_images: Any = _one_of("several_images", several_images, ("refuse", "join"))
        if mode == "generate" and output_dir is None:
            raise ConfigError("mode=generate needs a folder for the images", "none was given", "add output_dir=DIR")
        self.mode, self.max_new_tokens, self.samples = mode, int(max_new_tokens), int(samples)
        self.batch_size = int(batch_size)
        self.output_dir = Path(output_dir) if output_dir is not None else None
        processes = PartialState()
        self._rank, self._world_size = processes.process_index, processes.num_processes
        if self._world_size > 1:
            device = str(processes.device)
        given = {"backbone": backbone, "weights": weights, "seed": seed, "device": device, **settings}
        words = [f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in given.items() if value is not None]
        self.opened = open_model(Path(run) if run else None, words)
        self.device = self.opened.backbone.device

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """Answer, or draw for, lmms-eval's requests, in order."""
        calls = [_Call(*request.args) for request in requests]
        if self.mode == "generate" and self.output_dir is not None:
            return self._draw(calls, self.output_dir)
        return self._answer(calls)

    def loglikelihood(self, requests: Sequence[Any]) -> NoReturn:
        """Refused."""
        raise CapabilityError(
            "this task scores given continuations (loglikelihood)",
            "a backbone scores token ids that it sampled itself; its interface cannot turn a text into them",
            "use the task's generate_until form, e.g. seedbench instead of seedbench_ppl",
        )

    def generate_until_multi_round(self, requests: Sequence[Any]) -> NoReturn:
        """Refused."""
        raise CapabilityError(
            "this task is a dialogue of several rounds", "a backbone answers one prompt", "leave this task out"
        )

    def _answer(self, calls: Sequence[_Call]) -> list[str]:
        if self._rank == 0:
            self._record(self._protocol(calls))
        seeds = [
            derive_seed(self.opened.config.seed, "lmms-eval", *call.identity, repeat)
            for call, repeat in zip(calls, _repeats(calls), strict=True)
        ]
        answers: list[str] = [""] * len(calls)
        groups: dict[Any, list[int]] = {}
        for i, call in enumerate(calls):
            groups.setdefault(text_sampling(call.generation, self.max_new_tokens), []).append(i)
        for sampling, members in groups.items():
            for start in range(0, len(members), self.batch_size):
                batch = members[start : start + self.batch_size]
                asked = [
                    TextRequest(calls[i].context, one_image(self._visuals(calls[i]), self.several_images), seeds[i])
                    for i in batch
                ]
                given = self.opened.backbone.solve(asked, sampling, self.opened.role(Role.SOLVER))
                for i, sample in zip(batch, given, strict=True):
                    answers[i] = cut_at(sample.text, calls[i].generation.get("until")).strip()
                    self.cache_hook.add_partial("generate_until", (calls[i].context, calls[i].generation), answers[i])
        return answers

    def _draw(self, calls: Sequence[_Call], out: Path) -> list[str]:
        for call in calls:
            if self._visuals(call):
                raise CapabilityError(
                    f"task {call.task} shows an image to draw from", "a backbone draws from text", "leave this task out"
                )
        sheets = [
            [
                Sheet(
                    task_file(call.task, int(call.doc_id), k),
                    call.context.strip(),
                    (sample_seed(self.opened.config.seed, call.context.strip(), 0, k),),
                )
                for k in range(repeat * self.samples, (repeat + 1) * self.samples)
            ]
            for call, repeat in zip(calls, _repeats(calls), strict=True)
        ]
        if self._rank == 0:
            claim_folder(out, self._protocol(calls))
        sampling = ImageSampling("quality", self.opened.config.generate.temperature)
        flat = [sheet for own in sheets for sheet in own]
        draw_sheets(
            self.opened.backbone, self.opened.role(Role.GENERATOR), flat, out, sampling, batch_size=self.batch_size
        )
        return [response([(out / sheet.file).resolve() for sheet in own]) for own in sheets]

    def _visuals(self, call: _Call) -> Sequence[Any] | None:
        visuals: Sequence[Any] | None = call.doc_to_visual(self.task_dict[call.task][call.split][call.doc_id])
        return visuals

    def _record(self, protocol: Protocol) -> None:
        if self.output_dir is None:
            print("asg: no protocol.json is written; add output_dir=DIR to --model_args", file=sys.stderr)
            return
        self.output_dir.mkdir(parents=True, exist_ok=True)
        record_protocol(self.output_dir, SCORE, protocol)

    def _protocol(self, calls: Sequence[_Call]) -> Protocol:
        tasks = {call.task: call.generation for call in calls}
        rows = sorted(json.dumps([*call.identity, call.context]) for call in calls)
        items = Items("lmms-eval tasks " + ", ".join(sorted(tasks)), digest_of(r.encode() for r in rows), len(rows))
        drawing = {"samples_per_prompt": self.samples, "temperature": self.opened.config.generate.temperature}
        answering = {"several_images": self.several_images, "max_new_tokens": self.max_new_tokens, **tasks}
        return make_protocol(
            self.opened.backbone,
            self.opened.config,
            items,
            trained=self.opened.trained,
            sampling=drawing if self.mode == "generate" else answering,
            judge={name: os.environ.get(name, "the task's default") for name in _JUDGE_VARIABLES},
            packages=("lmms-eval",),
        )


class _Call:
    """The arguments of one request: prompt text, generation settings, where its images are, and whose it is."""

    def __init__(self, context: str, generation: Any, doc_to_visual: Any, doc_id: Any, task: str, split: str) -> None:
        self.context, self.generation, self.doc_to_visual = context, dict(generation or {}), doc_to_visual
        self.doc_id, self.task, self.split = doc_id, task, split

    @property
    def identity(self) -> tuple[str, str, str]:
        """Task, split and document."""
        return self.task, self.split, str(self.doc_id)


def _repeats(calls: Sequence[_Call]) -> list[int]:
    """How often each call's document came before; a task may ask for several answers to one."""
    seen: Counter[tuple[str, str, str]] = Counter()
    repeats = []
    for call in calls:
        repeats.append(seen[call.identity])
        seen[call.identity] += 1
    return repeats


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> str:
    if value not in allowed:
        raise ConfigError(f"{name}={value} is unknown", f"it is {' or '.join(allowed)}", "change --model_args")
    return value
