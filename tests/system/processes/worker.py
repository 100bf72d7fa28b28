"""Runs scenarios in several processes: one JSON job per line on stdin, one JSON list of outcomes per line on stdout.

The model is loaded once; the processes of a job are forked from here and get the variables that torchrun sets.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib.pyplot  # noqa: F401 - before the fork, as all that a run imports late
import torch
import torch.distributed
from torch.distributed.tensor import DTensor

import asg_core.runs.report.render
from asg_core import RunConfig, Trainer
from asg_core.backbones.interface import Backbone, Role
from asg_core.backbones.loading import load_backbone
from asg_core.errors import AsgError
from asg_core.testing.sharded import differences_here
from asg_core.training.distributed import Processes, ProcessGather
from asg_core.training.fsdp import shard_base
from asg_core.training.optimizer import RoleOptimizer

asg_core.runs.report.render.draw_panels = lambda *_: []  # type: ignore[assignment]  # nobody looks at these reports
RANK = "RANK"
BACKBONE: Any = load_backbone("tiny", device="cpu", dtype="float32")


def trainer_of(run: dict[str, Any], backbone: Any = BACKBONE) -> Trainer:
    if "resume" in run:
        return Trainer.resume(Path(run["resume"]), run["steps"], backbone)
    return Trainer(RunConfig.model_validate(run), backbone)


def train(run: dict[str, Any]) -> dict[str, Any]:
    """Train; counts data collectives and their sizes, and takes the fingerprint of the final state of this rank."""
    sizes: list[int] = []
    original = torch.distributed.all_reduce

    def counted(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        sizes.append(tensor.numel())
        return original(tensor, *args, **kwargs)

    torch.distributed.all_reduce = counted
    trainer = trainer_of(run)
    interrupted = trainer.run().interrupted
    parameters = {role.value: sum(p.numel() for p in trainer.backbone.trainable(role).values()) for role in Role}
    digest = trainer.state.digest()
    return {"sizes": sizes, "parameters": parameters, "digest": digest, "interrupted": interrupted}


def train_sharded(run: dict[str, Any]) -> dict[str, Any]:
    """:func:`train` as accelerate launch --use_fsdp --fsdp_version 2 starts it; also the share of the layers here."""
    os.environ |= {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
    _, layers = BACKBONE.shardable()
    adapters = {p for role in Role for p in BACKBONE.trainable(role).values()}

    def held() -> int:
        frozen = [p for layer in layers for p in layer.parameters() if p not in adapters]
        return sum((p.to_local() if isinstance(p, DTensor) else p).numel() for p in frozen)

    before = held()
    return {**train(run), "share": held() / before}


def compare_sharded(name: str, dtype: str) -> dict[str, float]:
    """Whole against sharded, as backbone authors do it."""
    torch.distributed.init_process_group("gloo")
    return differences_here(lambda: load_backbone(name, device="cpu", dtype=dtype))


def refuse_to_shard() -> None:
    """Shard a backbone that does not say what of it can be."""
    type(BACKBONE).shardable = Backbone.shardable
    shard_base(BACKBONE, torch.device("cpu"), 2)


def draw_globally(run: dict[str, Any]) -> list[float]:
    """Train, with a backbone that draws one number from torch's global generator per question batch; these numbers."""
    drawn: list[float] = []
    backbone = BACKBONE
    ask = backbone.ask

    def drawing(*args: Any, **kwargs: Any) -> Any:
        drawn.append(float(torch.rand(())))
        return ask(*args, **kwargs)

    backbone.ask = drawing
    trainer_of(run, backbone).run()
    return drawn


def disagree(run: dict[str, Any]) -> str:
    """Train, with one weight of the last rank moved by one bit between two checkpoints."""
    backbone = BACKBONE
    solve, calls = backbone.solve, [0]

    def meddling(*args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        if calls[0] == 1 and os.environ[RANK] != "0":
            with torch.no_grad():
                weight = next(iter(backbone.trainable(Role.GENERATOR).values()))
                weight[0, 0] = torch.nextafter(weight[0, 0], torch.tensor(1.0))
        return solve(*args, **kwargs)

    backbone.solve = meddling
    trainer_of(run, backbone).run()
    return "no error"


def start_apart(run: dict[str, Any]) -> str:
    """Start with a setting that differs between ranks."""
    trainer_of({**run, "seed": int(os.environ[RANK])}).run()
    return "no error"


def killed(run: dict[str, Any], in_step: int) -> str:
    """Train until the last rank dies by SIGKILL while it solves in step ``in_step``."""
    backbone = BACKBONE
    trainer = trainer_of(run, backbone)
    solve = backbone.solve

    def dying(*args: Any, **kwargs: Any) -> Any:
        if trainer.state.step + 1 == in_step and os.environ[RANK] == "1":
            os.kill(os.getpid(), signal.SIGKILL)
        return solve(*args, **kwargs)

    backbone.solve = dying
    trainer.run()
    return "no error"


def poisoned(run: dict[str, Any], how: str) -> Any:
    """Train, with scores of the last rank that are not finite ("nan") or not those of its samples ("replay")."""
    backbone = BACKBONE
    token_logits = backbone.token_logits

    def poison(*args: Any, **kwargs: Any) -> Any:
        scores = token_logits(*args, **kwargs)
        if os.environ[RANK] != "1":
            return scores
        if how == "nan":
            return [replace(s, kl=s.kl * float("nan")) for s in scores]
        return [replace(s, logprobs=s.logprobs - 1.0) for s in scores]

    backbone.token_logits = poison
    before = {role: [p.detach().clone() for p in backbone.trainable(role).values()] for role in Role}
    trainer = trainer_of(run, backbone)
    trainer.run()
    return [
        torch.equal(old, new)
        for role in Role
        for old, new in zip(before[role], backbone.trainable(role).values(), strict=True)
    ]


def optimised() -> dict[str, Any]:
    """One step on three weights: all processes pull at "all", the last one at "last", nobody at "none"."""
    from accelerate import Accelerator

    rank = int(os.environ[RANK])
    weights = {name: torch.nn.Parameter(torch.ones(2)) for name in ("all", "last", "none")}
    optimizer = RoleOptimizer(weights, 0.1, 0.5, 1e9, Accelerator(cpu=True))
    losses = [lambda: weights["all"].sum() * 10.0**rank]
    if rank == int(os.environ["WORLD_SIZE"]) - 1:
        losses.append(lambda: weights["last"].sum() * 3)
    result = optimizer.step(losses if rank else [], lambda: (rank, 1))
    state = {name: value.tolist() for name, value in optimizer.state().items() if "exp_avg_sq" not in name}
    values = {name: weight.tolist() for name, weight in weights.items()}
    return {"loss": result.loss, "norm": result.grad_norm, "sums": result.sums, "state": state, "weights": values}


def gathered() -> Any:
    """What :meth:`Processes.gather` makes of awkward values."""
    from accelerate import Accelerator

    processes = Processes(Accelerator(cpu=True))
    rank = processes.rank
    numbers = [float("inf"), 1e-320, 0.1] * (1000 * rank)
    value = {"text": "ümlaut \udcff \u0000" * rank, "numbers": numbers, "none": None}
    same = processes.gather(value)[rank] == value
    before = processes.stopping
    processes.stop_requested = rank == 1
    starts = [ProcessGather(processes).before(1), ProcessGather(processes).before(10 * rank)]
    return {"same": same, "starts": starts, "before": before, "stopping": processes.stopping}


SCENARIOS = (
    train,
    train_sharded,
    compare_sharded,
    refuse_to_shard,
    draw_globally,
    disagree,
    start_apart,
    killed,
    poisoned,
    optimised,
    gathered,
)


def run_job(job: dict[str, Any]) -> list[dict[str, Any]]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    count = job["processes"]
    scenario = next(f for f in SCENARIOS if f.__name__ == job["scenario"])
    children = []
    for rank in range(count):
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            os.environ |= {
                RANK: str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(count),
                "LOCAL_WORLD_SIZE": str(count),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
            }
            torch.set_num_threads(1)
            outcome: dict[str, Any]
            try:
                outcome = {"result": scenario(**job["arguments"])}
            except AsgError as error:
                outcome = {"error": type(error).__name__, "message": str(error)}
            with os.fdopen(write, "w") as out:
                json.dump(outcome, out)
            os._exit(0)
        os.close(write)
        children.append((child, read))
    outcomes = []
    for child, read in children:
        with os.fdopen(read) as answer:
            text = answer.read()
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        outcomes.append({"exit": status, **(json.loads(text) if text else {})})
    return outcomes


if __name__ == "__main__":
    for line in sys.stdin:
        print(json.dumps(run_job(json.loads(line))), flush=True)
