"""Parts of benchmarks/sgd_vs_amortized.py."""
