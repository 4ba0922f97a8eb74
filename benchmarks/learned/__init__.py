"""What benchmarks/learned_optimizers.py is made of."""
