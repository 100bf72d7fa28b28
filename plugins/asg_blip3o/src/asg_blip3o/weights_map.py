"""A released folder and the model: files, configurations, which tensor goes where, what may be left out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch

from asg_blip3o.config import DEAD, EVA, FLOW, eva_dims, flow_dims, latent_grid
from asg_blip3o.modeling_blip3o import Blip3oModel, build_empty
from asg_blip3o.modeling_decoder import vae_dtype
from asg_blip3o.options import Blip3oOptions
from asg_core.errors import ConfigError, WeightsError
from asg_core.models.weights.inventory import Inventory, StoredTensor, read_inventory, read_json, shapes
from asg_core.models.weights.loader import LoadReport, Slot, compare, fill, module_slots

DecoderConfigs = tuple[dict[str, Any], dict[str, Any], dict[str, Any]]

DECODER = "diffusion-decoder"
"""Sub-folder of the pixel decoder."""


@dataclass(frozen=True)
class Release:
    """A released folder, looked at but not loaded.

    Attributes:
        folder: where it is.
        config: ``config.json``.
        decoder_configs: UNet, autoencoder and scheduler settings.
        main, unet, vae: headers of the weights.
        variant: "8B", "4B" or "custom", told from the tensors.
    """

    folder: Path
    config: Mapping[str, Any]
    decoder_configs: DecoderConfigs
    main: Inventory
    unet: Inventory
    vae: Inventory
    variant: str

    @property
    def inventory(self) -> dict[str, StoredTensor]:
        """All tensors of the release; those of the decoder under their folder's name."""
        decoder = {f"{DECODER}/{part}:": stored for part, stored in (("unet", self.unet), ("vae", self.vae))}
        return {
            prefix + name: tensor
            for prefix, stored in {"": self.main, **decoder}.items()
            for name, tensor in stored.items()
        }


def read_release(folder: Path) -> Release:
    """Read config files and headers of a released folder.

    Raises:
        WeightsError: a file is missing, broken or cut short; config and tensors do not belong together.
    """
    config = _read_config(folder / "config.json")
    main = _stored(folder, "model")
    decoder = folder / DECODER
    return Release(
        folder,
        config,
        read_decoder_configs(decoder),
        main,
        _stored(decoder / "unet", "diffusion_pytorch_model"),
        _stored(decoder / "vae", "diffusion_pytorch_model"),
        _variant(config, main),
    )


def read_decoder_configs(folder: Path) -> DecoderConfigs:
    """The UNet, autoencoder and scheduler settings below ``folder`` (``diffusion-decoder/`` of a release).

    Each part is read from its own file: ``model_index.json`` names components that nothing can resolve.

    Raises:
        WeightsError: a file is missing or broken, or names a class that this decoder does not have.
    """
    wanted = (
        ("unet/config.json", "UNet2DConditionModel"),
        ("vae/config.json", "AutoencoderKL"),
        ("scheduler/scheduler_config.json", "EulerDiscreteScheduler"),
    )
    configs = []
    for name, kind in wanted:
        config = read_json(folder / name)
        if config.get("_class_name", kind) != kind:
            raise WeightsError(
                f"{folder / name} is of class {config['_class_name']}",
                f"the decoder needs {kind}",
                "use the released files",
            )
        configs.append(config)
    return configs[0], configs[1], configs[2]


def empty_model(release: Release, options: Blip3oOptions) -> Blip3oModel:
    """The model of a release on the meta device: names and shapes, no memory.

    Raises:
        WeightsError: a tensor that shows a size is missing. ConfigError: options that do not fit the model.
    """
    main = shapes(release.main)
    n_query = int(release.config.get("n_query", 0)) or main.get("model.latent_queries", (1, 0))[1]
    dims = flow_dims(main)
    grid = latent_grid(main, release.config, n_query, options.latent_grid)
    tower = None
    if options.real_image_target:
        if f"{EVA}pos_embed" not in main:
            raise ConfigError(
                "real_image_target=true needs the EVA-CLIP tower",
                f"{release.folder} has no tensor {EVA}pos_embed",
                "leave real_image_target=false, or give a checkpoint that holds the tower",
            )
        tower = (eva_dims(main), options.eva_head_width)
    return build_empty(release.config, n_query, dims, grid, release.decoder_configs, tower)


def main_slots(model: Blip3oModel) -> dict[str, Slot]:
    """Places of the main checkpoint's tensors, by their names there."""
    return module_slots(model, main_name, leave=_tied(model))


def main_name(name: str) -> str | None:
    """Name in the main checkpoint of a parameter of :class:`Blip3oModel`; None if it is stored elsewhere or nowhere."""
    if name == "latent_queries":
        return "model.latent_queries"
    if name == "flow.dit.pad_token":
        return None
    for ours, stored in (
        ("vlm.model.visual.", "visual."),
        ("vlm.model.language_model.", "model."),
        ("vlm.lm_head.", "lm_head."),
        ("flow.dit.", FLOW),
        ("flow.", FLOW),
        ("eva.", EVA),
    ):
        if name.startswith(ours):
            return stored + name.removeprefix(ours)
    return None


def load_model(
    release: Release, options: Blip3oOptions, device: torch.device, dtype: torch.dtype
) -> tuple[Blip3oModel, LoadReport]:
    """Build the model and read its weights, one tensor at a time.

    Returns:
        The frozen model in eval mode, and the report over all files (decoder tensors under their folder's name).

    Raises:
        WeightsError: a tensor is missing, misshapen or unexpected. ConfigError: options that do not fit the model.
    """
    model = empty_model(release, options)
    places = main_slots(model)
    unused = (*DEAD, *_tied(model)) if model.eva is not None else (*DEAD, *_tied(model), EVA)
    reports = {"": compare(places, shapes(release.main), skip=lambda name: name.startswith(unused))}
    reports[""].require(release.folder, allow_unexpected=options.allow_unexpected)
    for part, module, stored in (("unet", model.decoder.unet, release.unet), ("vae", model.decoder.vae, release.vae)):
        slots = module_slots(module)
        report = reports[f"{DECODER}/{part}:"] = compare(slots, shapes(stored))
        report.require(release.folder / DECODER / part, allow_unexpected=options.allow_unexpected)
        if options.drawing:
            fill(slots, stored, device=device, dtype=vae_dtype(dtype) if part == "vae" else dtype)
    flow = {name: slot for name, slot in places.items() if name.startswith(FLOW)}
    fill({name: slot for name, slot in places.items() if name not in flow}, release.main, device=device, dtype=dtype)
    fill(flow, release.main, device=device if options.drawing else "cpu", dtype=dtype)
    model.settle()
    for module in model.modules():
        for key, buffer in module._buffers.items():
            module._buffers[key] = buffer.to(device) if buffer is not None else None
    return model, _joined(reports)


def _tied(model: Blip3oModel) -> tuple[str, ...]:
    return ("lm_head.weight",) if model.vlm.config.tie_word_embeddings else ()


def _stored(folder: Path, stem: str) -> dict[str, StoredTensor]:
    return read_inventory(folder, (stem,), variant="bf16", any_name=True)


def _joined(reports: Mapping[str, LoadReport]) -> LoadReport:
    def names(field: str) -> tuple[str, ...]:
        return tuple(prefix + name for prefix, report in reports.items() for name in getattr(report, field))

    return LoadReport(*(names(field.name) for field in fields(LoadReport)))


def _read_config(file: Path) -> dict[str, Any]:
    config = read_json(file)
    if config.get("model_type") != "blip3o_qwen" or "gen_pooling" not in config:
        raise WeightsError(
            f"{file} is of another model (model_type={config.get('model_type')!r})",
            "BLIP3o's diffusion family has model_type 'blip3o_qwen' and gen_pooling; BLIP3o-NEXT differs",
            "give the directory of BLIP3o-Model-8B or -4B",
        )
    return config


def _variant(config: Mapping[str, Any], stored: Inventory) -> str:
    """Which release the tensors are of; refuses a config of another one."""
    embedding = stored.get("model.embed_tokens.weight")
    if embedding is None:
        raise WeightsError(
            "tensor 'model.embed_tokens.weight' is missing",
            "the variant is told from its shape",
            "give the directory of a complete BLIP3o release (4B or 8B, not BLIP3o-NEXT)",
        )
    variants = {3584: "8B", 2048: "4B"}
    told, width = variants.get(embedding.shape[-1], "custom"), config.get("hidden_size")
    if embedding.shape[-1] != width:
        raise WeightsError(
            f"config.json is of variant {variants.get(int(width or 0), 'custom')}, the weights are of variant {told}",
            f"hidden_size is {width}, 'model.embed_tokens.weight' has shape {list(embedding.shape)}",
            "use config files and weights of the same release",
        )
    return told
