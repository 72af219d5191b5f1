"""Training: the loop, its schedule, checkpoints and the LTE sparsity controller."""
