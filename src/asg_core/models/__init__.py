"""What backbones are built from: LoRA adapters by role, batched decoding and scoring, weights in released layouts."""
