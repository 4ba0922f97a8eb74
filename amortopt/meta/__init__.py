"""Meta-training of metanets. The only part that imports Lightning."""
