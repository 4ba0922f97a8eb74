"""What all benchmarks share: results files with provenance, timing, tables, pictures, the command line."""
