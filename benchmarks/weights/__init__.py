"""How well networks can be judged from their weights alone: the Tiny RNN Zoo."""
