"""Does a backbone whose ``shardable`` layers are split over two processes give what the whole one gives?"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from PIL import Image
from torch import Tensor
from torch.distributed.tensor import DTensor

from asg_core.backbones.interface import Backbone, ImageRequest, ImageSampling, Role, TextRequest, TextSampling
from asg_core.backbones.loading import load_backbone
from asg_core.backbones.manifest import LoraSettings
from asg_core.config.seeding import derive_seed
from asg_core.training.fsdp import shard_base


def sharding_differences(name: str, **arguments: Any) -> dict[str, float]:
    """Largest difference between the whole and the sharded model, by what is compared; all 0 if both agree bit for bit.

    Compared are sampled token ids, log-probs, embeddings, drawn pixels, and the gradients of all adapters that the
    Solver's scores and the Generator's loss reach. Two processes are started, on the CPU in float32.

    Args:
        name: of an installed backbone.
        arguments: ``weights``, ``options`` and ``lora`` of ``load_backbone``, as JSON data.

    Raises:
        subprocess.CalledProcessError: a process failed; what it printed is in ``stderr``.
    """
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", __name__]
    ended = subprocess.run(
        [*command, json.dumps({"name": name, **arguments}, default=str)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    found: dict[str, float] = json.loads(ended.stdout)
    return found


def differences_here(load: Callable[[], Backbone]) -> dict[str, float]:
    """What :func:`sharding_differences` returns, in every process of a group that exists.

    Args:
        load: a fresh backbone on the CPU, every time with the same weights.

    Raises:
        ConfigError: the backbone's base cannot be sharded.
        AssertionError: a layer has its frozen weights whole after the comparison.
    """
    whole, sharded = load(), load()
    for backbone in (whole, sharded):
        _stir(backbone)
    expected = _results(whole)
    shard_base(sharded, torch.device("cpu"), dist.get_world_size())
    found = _results(sharded)
    _, layers = sharded.shardable() or (None, [])
    adapters = {p for role in Role for p in sharded.trainable(role).values()}
    assert all(isinstance(p, DTensor) for layer in layers for p in layer.parameters() if p not in adapters)
    assert expected.keys() == found.keys()
    return {
        name: float((expected[name] - found[name]).abs().max()) if expected[name].shape == found[name].shape else np.inf
        for name in expected
    }


def _stir(backbone: Backbone) -> None:
    with torch.no_grad():
        for role in Role:
            for name, parameter in backbone.trainable(role).items():
                stream = torch.Generator().manual_seed(derive_seed("stir", role.value, name))
                parameter.copy_(0.02 * torch.randn(parameter.shape, generator=stream))


def _results(backbone: Backbone) -> dict[str, Tensor]:
    image = Image.linear_gradient("L").convert("RGB").resize((64, 64))
    requests = [TextRequest(f"what is thing {i}?", image, i) for i in range(3)]
    with torch.no_grad():
        asked = backbone.ask(requests, TextSampling(8))
        backbone.prefill([image], [Role.SOLVER, None])
        solved = backbone.solve(requests, [TextSampling(6), TextSampling(6, 0.0), TextSampling(3)])
        results = {"token ids": torch.tensor([t for s in (*asked, *solved) for t in s.token_ids])}
    scores = backbone.token_logits(solved, Role.SOLVER, base=True)
    results["log-probs"] = torch.cat([s.logprobs for s in scores]).detach()
    torch.stack([s.logprobs.sum() + s.kl.sum() for s in scores if s.kl is not None]).sum().backward()  # type: ignore[no-untyped-call]
    can = backbone.manifest.capabilities
    if can.image_loss is not None:
        with torch.no_grad():
            drawn = backbone.generate([ImageRequest("a red circle", 3)], ImageSampling())
        results["pixels"] = torch.from_numpy(np.array(drawn[0].image, dtype=np.int64))
        backbone.generation_loss(drawn, [5]).loss.sum().backward()  # type: ignore[no-untyped-call]
    if can.embed:
        results["embeddings"] = backbone.embed(["a red circle", image])
    for role in Role:
        for name, parameter in backbone.trainable(role).items():
            if parameter.grad is not None:
                results[f"gradient of {role.value} {name}"] = parameter.grad
    return results


def _main() -> None:
    arguments = json.loads(sys.argv[1])
    arguments["lora"] = LoraSettings(**arguments.get("lora") or {})
    dist.init_process_group("gloo")
    found = differences_here(lambda: load_backbone(**arguments, device="cpu", dtype="float32"))
    if dist.get_rank() == 0:
        sys.stdout.write(json.dumps(found))
    dist.destroy_process_group()


if __name__ == "__main__":
    _main()
