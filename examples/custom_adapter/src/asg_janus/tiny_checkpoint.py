"""Write a tiny, randomly initialised checkpoint of the true architecture, in the layout of the released ones.

    python -m asg_janus.tiny_checkpoint DIR

Two megabytes, for tests and for trying the commands: it draws noise and writes gibberish. No part of the adapter.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    GenerationConfig,
    JanusConfig,
    JanusForConditionalGeneration,
    JanusProcessor,
    JanusVisionConfig,
    JanusVQVAEConfig,
    LlamaConfig,
    PreTrainedTokenizerFast,
)
from transformers.models.janus.image_processing_pil_janus import JanusImageProcessorPil
from transformers.models.janus.processing_janus import DEFAULT_SYSTEM_PROMPT

from asg_core.method.prompts import CAPTION_PROMPT, FRAMINGS, QUESTION_PROMPT, SPEC_PROMPT, frame

SIDE, PATCH = 32, 8
_BOS, _EOS, _PAD = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>"
_IMAGE = {"image_token": "<image_placeholder>", "boi_token": "<begin_of_image>", "eoi_token": "<end_of_image>"}
_SPECIAL = [_BOS, _EOS, _PAD, *_IMAGE.values(), "<|User|>", "<|Assistant|>"]
_FRAMED = [frame("What is it? Is it a red cat?", framing) for framing in FRAMINGS]
_TEXTS = [DEFAULT_SYSTEM_PROMPT, QUESTION_PROMPT, SPEC_PROMPT, CAPTION_PROMPT, *_FRAMED]
_CHAT = (
    "{% for message in messages %}<|User|>: {% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image_placeholder>\n{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endfor %}{{ '\n\n' }}<|Assistant|>:"
)


def write_tiny_checkpoint(directory: Path, seed: int = 0) -> Path:
    """Write ``config.json``, ``model.safetensors``, tokenizer and processor files into ``directory`` and return it.

    Args:
        directory: made if it does not exist.
        seed: of the weights; the process's own random stream is left alone.
    """
    tokenizer = _tokenizer()
    ids = {name: tokenizer.convert_tokens_to_ids(token) for name, token in _IMAGE.items()}
    config = _config(tokenizer, ids["image_token"])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = JanusForConditionalGeneration(config)
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        generation_kwargs={"boi_token_id": ids["boi_token"]},
    )
    model.save_pretrained(directory)
    half = [0.5, 0.5, 0.5]
    images = JanusImageProcessorPil(size={"height": SIDE, "width": SIDE}, min_size=4, image_mean=half, image_std=half)
    processor = JanusProcessor(
        images,
        tokenizer,
        chat_template=_CHAT,
        use_default_system_prompt=True,
        num_image_tokens=config.vision_config.num_image_tokens,
    )
    processor.save_pretrained(directory)
    return directory


def _tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex("[\r\n]"), "isolated"),
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=1000,
        min_frequency=1,
        special_tokens=_SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_TEXTS, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{_BOS} $A", special_tokens=[(_BOS, tokenizer.token_to_id(_BOS))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=_BOS,
        eos_token=_EOS,
        pad_token=_PAD,
        padding_side="left",
        extra_special_tokens=_IMAGE,
    )


def _config(tokenizer: PreTrainedTokenizerFast, image_token: int) -> JanusConfig:
    width, codes = 64, 48
    text = LlamaConfig(
        vocab_size=len(tokenizer) + 8,
        hidden_size=width,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        initializer_range=0.2,
        tie_word_embeddings=False,
    )
    vision = JanusVisionConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=SIDE,
        patch_size=PATCH,
        projection_dim=width,
        num_image_tokens=(SIDE // PATCH) ** 2,
        initializer_range=0.2,
    )
    drawing = JanusVQVAEConfig(
        num_embeddings=codes,
        latent_channels=8,
        base_channels=32,
        channel_multiplier=[1, 1, 1, 1],
        num_res_blocks=1,
        projection_dim=width,
        image_token_embed_dim=width,
        initializer_range=0.2,
    )
    return JanusConfig(
        text_config=text,
        vision_config=vision,
        vq_config=drawing,
        image_token_id=image_token,
        tie_word_embeddings=False,
    )


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path, help="where to write")
    parser.add_argument("--seed", type=int, default=0, help="of the weights")
    args = parser.parse_args()
    print(write_tiny_checkpoint(args.directory, args.seed))


if __name__ == "__main__":
    main()
