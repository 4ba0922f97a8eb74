"""One forward pass of a metanet against tuned SGD and Adam, with and without L1."""
