"""Training of many networks at once: one optimizer step, one loop."""

from amortopt.training.loop import EpochBatches, Trained, train_epochs, train_many
from amortopt.training.stepper import OptimizerName, Schedule, Stepper

__all__ = ["EpochBatches", "OptimizerName", "Schedule", "Stepper", "Trained", "train_epochs", "train_many"]
