"""Meta-training of metanets. The only part that imports Lightning."""

from amortopt.system.extras import needed_for

with needed_for("meta-training", extra="train"):
    import lightning as lightning
