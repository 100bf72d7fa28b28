"""The training loop and what it stands on: optimizer, checkpoints, processes, memory, alarms."""
