"""A directory in transformers' own layout -> a frozen model. Stored names are the model's own, so the map is short."""

from __future__ import annotations

from pathlib import Path

import torch
from accelerate import init_empty_weights
from huggingface_hub.errors import StrictDataclassError
from transformers import JanusConfig, JanusForConditionalGeneration, PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.models.janus.image_processing_pil_janus import JanusImageProcessorPil
from transformers.models.janus.processing_janus import DEFAULT_SYSTEM_PROMPT

from asg_core.errors import WeightsError
from asg_core.models.weights.inventory import check_tokenizer_files, read_inventory, read_json, shapes
from asg_core.models.weights.loader import compare, fill, module_slots
from asg_janus.text import JanusText

_FIX = "give the complete directory of a Janus checkpoint in transformers' layout; download damaged files again"
_UNREADABLE = (OSError, ValueError, KeyError, TypeError, StrictDataclassError)
_TOKENS = ("bos_token", "eos_token", "pad_token", "image_token", "boi_token", "eoi_token")


def load_text(directory: Path, device: str, dtype: torch.dtype) -> JanusText:
    """The frozen model in eval mode, with its tokenizer and image processor.

    Raises:
        WeightsError: a file is missing, damaged or of another model; a tensor is missing, extra, misshapen or cut off.
    """
    if (kind := read_json(directory / "config.json").get("model_type")) != "janus":
        raise WeightsError(f"{directory} is no Janus checkpoint", f"config.json says model_type {kind!r}", _FIX)
    check_tokenizer_files(directory)
    try:
        config = JanusConfig.from_pretrained(directory, attn_implementation="sdpa", local_files_only=True)
        with init_empty_weights(include_buffers=False):
            model = JanusForConditionalGeneration(config)
        tokenizer = PreTrainedTokenizerFast.from_pretrained(directory, local_files_only=True)
        processor = JanusImageProcessorPil.from_pretrained(directory, local_files_only=True)
    except _UNREADABLE as error:
        raise WeightsError(f"the checkpoint in {directory} cannot be read", str(error), _FIX) from error
    _check_tokens(directory, tokenizer)
    _load(model, directory, device, dtype)
    has_system = read_json(directory / "processor_config.json").get("use_default_system_prompt", False)
    return JanusText(model, tokenizer, processor, DEFAULT_SYSTEM_PROMPT if has_system else "")


def _load(model: JanusForConditionalGeneration, directory: Path, device: str, dtype: torch.dtype) -> None:
    tied = ["lm_head.weight"] if model.config.tie_word_embeddings else []
    slots, stored = module_slots(model, leave=tied), read_inventory(directory)
    compare(slots, shapes(stored), skip=lambda name: name in tied).require(directory)
    fill(slots, stored, device=device, dtype=dtype)
    model.tie_weights()
    model.requires_grad_(False).eval().to(device)


def _check_tokens(directory: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    if lacking := [name for name in _TOKENS if getattr(tokenizer, name, None) is None]:
        raise WeightsError(
            f"the tokenizer in {directory} has no {lacking[0]}", "prompts of Janus are built from special tokens", _FIX
        )
