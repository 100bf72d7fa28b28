"""A directory in transformers' own layout -> a frozen model; strict, from safetensors only."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import JanusForConditionalGeneration, PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.models.janus.image_processing_pil_janus import JanusImageProcessorPil
from transformers.models.janus.processing_janus import DEFAULT_SYSTEM_PROMPT

from asg_core.errors import WeightsError
from asg_janus.text import JanusText

_FIX = "give the complete directory of a Janus checkpoint in transformers' layout; download damaged files again"
_UNREADABLE = (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError, StrictDataclassError)
_TOKENS = ("bos_token", "eos_token", "pad_token", "image_token", "boi_token", "eoi_token")


def load_text(directory: Path, device: str, dtype: torch.dtype) -> JanusText:
    """The frozen model in eval mode, with its tokenizer and image processor.

    Raises:
        WeightsError: a file is missing, damaged or of another model; a tensor is missing, extra, misshapen or cut off.
    """
    if (kind := _json(directory / "config.json").get("model_type")) != "janus":
        raise WeightsError(f"{directory} is no Janus checkpoint", f"config.json says model_type {kind!r}", _FIX)
    for file in sorted(directory.glob("*.safetensors")):
        _check_whole(file)
    try:
        model, report = JanusForConditionalGeneration.from_pretrained(
            directory,
            dtype=dtype,
            attn_implementation="sdpa",
            use_safetensors=True,
            local_files_only=True,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
        tokenizer = PreTrainedTokenizerFast.from_pretrained(directory, local_files_only=True)
        processor = JanusImageProcessorPil.from_pretrained(directory, local_files_only=True)
    except _UNREADABLE as error:
        raise WeightsError(f"the checkpoint in {directory} cannot be read", str(error), _FIX) from error
    _check_tensors(directory, report)
    _check_tokens(directory, tokenizer)
    has_system = _json(directory / "processor_config.json").get("use_default_system_prompt", False)
    model.requires_grad_(False).eval().to(device)
    return JanusText(model, tokenizer, processor, DEFAULT_SYSTEM_PROMPT if has_system else "")


def _json(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise WeightsError(f"{path} cannot be read", str(error), _FIX) from error


def _check_whole(file: Path) -> None:
    """A safetensors file says where each tensor ends; safetensors itself does not name the one that is cut off."""
    size = file.stat().st_size
    try:
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            header = json.loads(stream.read(min(length, size)))
        header.pop("__metadata__", None)
        ends = sorted((8 + length + entry["data_offsets"][1], name) for name, entry in header.items())
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightsError(f"{file} is no safetensors file", str(error), _FIX) from error
    for end, name in ends:
        if end > size:
            raise WeightsError(f"{file}: tensor {name!r} is cut off", f"it ends at byte {end} of {size}", _FIX)


def _check_tensors(directory: Path, report: Mapping[str, Any]) -> None:
    """Refuse what transformers would initialise at random or ignore; it ties ``lm_head`` itself where it is tied."""
    misshapen = {name: f"{list(stored)} stored, {list(own)} wanted" for name, stored, own in report["mismatched_keys"]}
    for what, names in (
        ("is missing", set(report["missing_keys"]) - misshapen.keys()),
        ("is unexpected", report["unexpected_keys"]),
        ("is misshapen", misshapen),
    ):
        if names:
            first = min(names)
            why = f"{len(names)} such in {directory}; {misshapen.get(first, 'the configuration decides what belongs')}"
            raise WeightsError(f"tensor {first!r} {what}", why, _FIX)


def _check_tokens(directory: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    if lacking := [name for name in _TOKENS if getattr(tokenizer, name, None) is None]:
        raise WeightsError(
            f"the tokenizer in {directory} has no {lacking[0]}", "prompts of Janus are built from special tokens", _FIX
        )
