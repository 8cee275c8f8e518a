"""Training and asking: runs, the order of examples, checkpoints, evaluation."""
