"""Networks with a fifth of their weights: one pass against magnitudes, L1 training and iterative pruning."""
