"""The counter: phases follow from the calls of a backbone, counts are those of its modules, nothing is left behind."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from asg_core.backbones.interface import Role, TextRequest, TextSampling
from asg_core.cli import main
from asg_core.testing.operations import watched
from asg_core.testing.qwen import QwenBackbone, random_qwen
from asg_core.training.profiler import counted

LAYERS = "language_model.layers"


@pytest.fixture
def backbone() -> QwenBackbone:
    backbone = QwenBackbone(random_qwen())
    backbone.text.stop_token_ids = frozenset()
    return backbone


def requests(count: int) -> list[TextRequest]:
    image = Image.new("RGB", (56, 56), "red")
    return [TextRequest("Why?", image, seed) for seed in range(count)]


def test_rows_tokens_passes_and_bytes_of_one_call(backbone: QwenBackbone) -> None:
    with counted(backbone) as costs:
        backbone.ask(requests(3), TextSampling(5))
    asked = costs.phases["ask"]
    assert (asked.calls, asked.rows, asked.tokens) == (1, 3, 15)
    assert asked.milliseconds > 0
    prefix = len("Look. ") + 1 + 4 + 2  # header, and four tokens of an image between its marks
    prompt = len("Why?") + 1
    layers = costs.network(LAYERS, "ask")
    assert (layers.passes, layers.rows, layers.tokens) == (2 + 4, 1 + 1 + 4 * 3, prefix + prompt + 4 * 3)
    weights = sum(p.numel() * 4 for p in backbone.model.model.language_model.layers.parameters())
    assert layers.bytes == weights * layers.passes
    assert costs.network("visual.blocks").tokens == 16  # patches before merging
    assert costs.network(LAYERS, "solve").passes == 0
    with pytest.raises(KeyError, match=r"language_model\.layers"):
        costs.network("no_such")


def test_greedy_answers_and_scores_without_gradients_are_one_phase_and_updates_another(backbone: QwenBackbone) -> None:
    with counted(backbone) as costs:
        samples = backbone.solve(requests(2), TextSampling(3))
        backbone.solve(requests(1), TextSampling(3, temperature=0.0))
        with torch.no_grad():
            backbone.token_logits(samples, Role.SOLVER)
        optimizer = torch.optim.SGD(backbone.trainable(Role.SOLVER).values(), lr=0.1)
        for _ in range(2):
            scores = backbone.token_logits(samples, role=Role.SOLVER)
            sum(score.logprobs.sum() for score in scores).backward()
        assert costs.phase == "update"
        optimizer.step()
        assert costs.phase == "core"
    calls = {phase: (cost.calls, cost.rows, cost.tokens) for phase, cost in costs.phases.items() if cost.calls}
    assert calls == {"solve": (1, 2, 6), "score": (2, 3, 9), "update": (2, 4, 12)}
    assert costs.backwards == {Role.SOLVER: 2}
    assert costs.optimizer_steps == {Role.SOLVER: 1}


def test_greedy_rows_among_sampled_ones_and_what_is_read_ahead(backbone: QwenBackbone) -> None:
    asked = requests(3)
    image = asked[0].image
    assert image is not None
    with counted(backbone) as costs:
        backbone.prefill([image], [Role.SOLVER, None])
        backbone.solve(asked, [TextSampling(3), TextSampling(3), TextSampling(3, temperature=0.0)])
    assert {name: (cost.calls, cost.rows) for name, cost in costs.phases.items() if cost.calls} == {
        "prefill": (1, 1),
        "solve": (1, 3),
    }
    assert (costs.network(LAYERS, "prefill").passes, costs.network(LAYERS, "prefill").rows) == (1, 2)
    assert costs.network(LAYERS, "solve").passes == 1 + 2  # prompt, and a token more than the first


def test_nothing_is_counted_or_left_after_the_block(backbone: QwenBackbone) -> None:
    with counted(backbone) as costs:
        backbone.ask(requests(1), TextSampling(2))
    passes = costs.network(LAYERS).passes
    backbone.ask(requests(1), TextSampling(2))
    assert costs.network(LAYERS).passes == passes
    assert not {"ask", "solve", "token_logits"} & set(vars(backbone))
    assert not any(module._forward_pre_hooks for module in backbone.model.modules())


def test_synchronisations_are_seen(backbone: QwenBackbone) -> None:
    mask = torch.tensor([True, False])
    with counted(backbone) as costs, watched(costs, 3) as operations:
        values = torch.ones(2)
        for _ in range(2):
            values.tolist()
        float(values[0])
        values[mask]
        torch.tensor([1.0], device="cpu")
        values.numpy()
        (torch.ones(5, 4) @ torch.ones(4, 3)).sum()
    assert {name: n for (_, name), n in operations.syncs.items()} == {
        "tolist": 2,
        "_local_scalar_dense": 1,
        "index": 1,
        "tensor": 1,
        "numpy": 1,
    }
    assert operations.rows == 5


def test_a_profiled_run_prints_the_table_and_keeps_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    words = ["steps=2", "schedule.ratio=[1, 1]", "images_per_step=1", "generate.prompts_per_step=1"]
    assert main(["train", *words, "evaluate=false", "device=cpu", "profile=true", f"out={out}"]) == 0
    profile = json.loads((out / "profile.json").read_text())
    assert profile["optimizer_steps"]["solver"] == profile["backwards"]["solver"] == 1
    for phase in ("ask", "solve", "score", "update", "generate", "embed"):
        cost = profile["phases"][phase]
        assert cost["calls"] > 0
        assert cost["networks"]["trunk.layers"]["passes"] > 0
    printed = capsys.readouterr().err
    assert "GB of weights" in printed
    assert "trunk.layers" in printed
    assert main(["train", "steps=0", "evaluate=false", f"out={tmp_path / 'plain'}"]) == 0
    assert not (tmp_path / "plain" / "profile.json").exists()
