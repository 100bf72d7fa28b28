"""BLIP3o as a backbone of asg-core: Qwen2.5-VL, learned queries, a flow over EVA-CLIP features, a pixel decoder."""

__version__ = "0.1.0"
