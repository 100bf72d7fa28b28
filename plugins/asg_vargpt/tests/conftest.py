"""The recorded tiny checkpoint, loaded as a user would; another member of the family; pictures and awake adapters."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from asg_vargpt.backbone import VargptBackbone
from asg_vargpt.config import Architecture, DecoderShape, GenerationTokens, VaeShape
from asg_vargpt.modeling_vargpt import Vargpt
from asg_vargpt.weights_map import SOS, slots, unused_tensors
from PIL import Image
from safetensors.torch import save_file

from asg_core.backbones.interface import Role
from asg_core.backbones.loading import load_backbone
from asg_core.backbones.manifest import LoraSettings
from devkit.lending import Library

GOLDEN = Path(__file__).parent / "fixtures" / "golden"
CHECKPOINT = GOLDEN / "ckpt"
SMALL = {"resolution": "0.06M"}

Load = Callable[..., VargptBackbone]


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def load() -> Load:
    """Loads a checkpoint with the smallest image size; keyword arguments are backbone options."""

    def _load(weights: Path = CHECKPOINT, dtype: Any = "float32", checkpointing: bool = False, **options: Any) -> Any:
        return load_backbone(
            "vargpt",
            weights=weights,
            device="cpu",
            dtype=dtype,
            options={"rollout": SMALL, "quality": SMALL, **options},
            lora=LoraSettings(rank=4, alpha=8),
            gradient_checkpointing=checkpointing,
        )

    return _load


@pytest.fixture(scope="session")
def awake(load: Load, wake: Callable[..., None]) -> VargptBackbone:
    """A backbone whose three adapters all have an effect. Shared: do not change it."""
    backbone = load()
    for seed, role in enumerate(Role):
        wake(backbone, role, seed)
    return backbone


@pytest.fixture(scope="session")
def library() -> Library:
    """Backbones that tests share, one after the other."""
    return Library()


@pytest.fixture
def backbone(library: Library, load: Load) -> Iterator[VargptBackbone]:
    """A backbone as newly loaded, whose adapters have no effect yet."""
    with library.lend("vargpt", load) as lent:
        yield lent


@pytest.fixture(scope="session")
def wake() -> Callable[..., None]:
    """Gives an adapter an effect, as training would."""

    def _wake(backbone: VargptBackbone, role: Role, seed: int = 0, size: float = 0.1) -> None:
        stream = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, parameter in backbone.trainable(role).items():
                if name.endswith("lora_B.weight"):
                    parameter.copy_(torch.randn(parameter.shape, generator=stream) * size)

    return _wake


@pytest.fixture(scope="session")
def golden() -> Path:
    """The fixture folder."""
    return GOLDEN


@pytest.fixture
def released(tmp_path: Path) -> Path:
    """A copy of the released checkpoint to damage."""
    return Path(shutil.copytree(CHECKPOINT, tmp_path / "ckpt"))


@pytest.fixture(scope="session")
def picture() -> Callable[..., Image.Image]:
    """Makes a random RGB image of a seed."""

    def _picture(seed: int, width: int = 60, height: int = 88) -> Image.Image:
        noise = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
        return Image.fromarray(noise)

    return _picture


@pytest.fixture(scope="session")
def relative(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random float32 checkpoint of the family, in one file, whose every size differs from the recorded one."""
    directory = tmp_path_factory.mktemp("relative")
    for file in CHECKPOINT.iterdir():
        if file.suffix in (".json", ".txt") and "index" not in file.name:
            shutil.copyfile(file, directory / file.name)
    config = json.loads((CHECKPOINT / "config.json").read_text(encoding="utf-8"))
    config |= {"hidden_size": 96, "intermediate_size": 80, "num_hidden_layers": 3, "num_attention_heads": 3}
    config |= {"num_key_value_heads": 1, "rope_scaling": {"type": "mrope", "mrope_section": [4, 6, 6]}}
    config["vision_config"] |= {"depth": 1, "embed_dim": 64, "num_heads": 4, "hidden_size": 96}
    (directory / "config.json").write_text(json.dumps(config), encoding="utf-8")
    special = config["special_tokens"]
    tokens = GenerationTokens(*(special[f"image_gen_{kind}_token_id"] for kind in ("start", "end", "pad")))
    shape = Architecture(
        DecoderShape(width=64, heads=2, chunks=(2, 1), ffn_width=96, bits=5, levels=14, uncond_rows=130, pool_heads=2),
        VaeShape(widths=(24, 24, 32, 32, 64), encoder_blocks=2, decoder_blocks=1, bits=5),
        tokens,
    )
    stream = torch.Generator().manual_seed(0)
    model = Vargpt(config, shape)
    tensors = {
        name: _random(name, size, None, stream) for name, size in unused_tensors(shape, model.hidden_size).items()
    }
    for name, slot in slots(model).items():
        tensors[name] = _random(name, slot.shape, slot.tensor.detach(), stream)
    assert tensors[SOS].shape[0] == tokens.start + 1
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    return directory


def _random(name: str, size: tuple[int, ...], default: torch.Tensor | None, stream: torch.Generator) -> torch.Tensor:
    noise = torch.randn(size, generator=stream)
    if name.endswith("zero_k_bias"):
        return torch.zeros(size)
    if len(size) == 1 or "scale_mul" in name:
        centre = torch.zeros(size) if default is None else default
        return centre.clone() + 0.1 * noise
    fan_in = noise[0].numel() if "embed" not in name else 1
    return noise * fan_in**-0.5
