"""Benchmarks, one folder per question; run as ``python benchmarks/FOLDER``. Results are in results/."""
