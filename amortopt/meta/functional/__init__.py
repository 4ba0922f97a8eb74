"""Meta-training of functionals and editors on zoos of labelled networks."""
