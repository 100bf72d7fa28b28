"""Text roles on a tiny text model, the Generator on another module."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaModel

from asg_core.backbones.interface import Role
from asg_core.backbones.manifest import LoraSettings
from asg_core.models.lora import RoleAdapters

TEXT = ["q_proj", "v_proj", "down_proj"]

IDS = torch.tensor([[3, 1, 4, 1, 5, 9]])


def text_model(dtype: torch.dtype = torch.float32) -> LlamaModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=16, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2
        )
        return LlamaModel(config).eval().to(dtype)


class Painter(nn.Module):
    """Stands for the drawing half of a backbone: other layer names, another module."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            self.to_hidden, self.to_out = nn.Linear(4, 8), nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.to_out(torch.tanh(self.to_hidden(x)))


def randomise(adapters: RoleAdapters, roles=Role) -> None:
    stream = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for role in roles:
            for weight in adapters.parameters(role).values():
                weight.copy_(torch.randn(weight.shape, generator=stream) * 0.2)


@pytest.fixture
def duo():
    """Text roles on a text model, the Generator on a painter."""
    text, painter = text_model(), Painter()
    targets = {
        Role.PROPOSER: {"text": TEXT},
        Role.SOLVER: {"text": TEXT},
        Role.GENERATOR: {"painter": r"to_(hidden|out)"},
    }
    adapters = RoleAdapters({"text": text, "painter": painter}, targets, LoraSettings(rank=4, alpha=8), seed=1)
    return text, painter, adapters


def hidden(text, adapters, role):
    with torch.no_grad(), adapters.use(role):
        return text(IDS).last_hidden_state
