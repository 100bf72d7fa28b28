"""Released checkpoints: what a folder holds, how it becomes a model, how adapters are merged into a copy of it."""
