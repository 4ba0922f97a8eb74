"""Learned optimizers against SGD, Adam and AdamW that are tuned for every problem."""
