"""Released checkpoints: what they hold and how adapters are merged into them."""
