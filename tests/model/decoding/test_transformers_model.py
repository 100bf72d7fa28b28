"""The stock-decoder adapter refuses what it cannot decode right, and keeps off a kernel that does not."""

from __future__ import annotations

import pytest
import torch
from transformers import MistralConfig, MistralModel

from asg_core.backbones.interface import TextRequest, TextSampling
from asg_core.errors import CapabilityError, PluginError
from asg_core.models.decoding import TransformersCausalModel, sample_text
from asg_core.testing.qwen import QwenBackbone, random_qwen


def test_images_need_a_subclass_that_sees(rig_llama, make_picture):
    with pytest.raises(CapabilityError, match="1 image"):
        sample_text(rig_llama.model, [TextRequest("Why?", make_picture(1), 0)], TextSampling(2))


def test_image_segments_move_the_counter_by_less_than_their_length(rig_qwen, make_picture):
    segment = rig_qwen.model.image_segments([make_picture(1, 84, 56)])[0]
    assert len(segment.embeds) == 2 * 3 + 2
    assert segment.advance == 3 + 2
    assert segment.positions[:, 1:-1].tolist() == [[1] * 6, [1, 1, 1, 2, 2, 2], [1, 2, 3] * 2]


@pytest.mark.parametrize("change", [{"attn_implementation": "eager"}, {"layer_types": ["sliding_attention"]}])
def test_other_attention_is_refused(rig_llama, change):
    config = MistralConfig(
        vocab_size=16,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
    )
    for name, value in change.items():
        setattr(config, {"attn_implementation": "_attn_implementation"}.get(name, name), value)
    with pytest.raises(PluginError, match="cannot decode with MistralModel"):
        TransformersCausalModel(
            MistralModel(config), rig_llama.full.lm_head, rig_llama.model.tokenizer, stop_token_ids=[0]
        )


def test_attention_keeps_off_cudnn():
    """Its gradients under a mask are wrong for some lengths, and torch would prefer it on an H100."""
    torch.backends.cuda.enable_cudnn_sdp(True)
    QwenBackbone(random_qwen())
    assert not torch.backends.cuda.cudnn_sdp_enabled()
