"""Training of many networks at once: one optimizer step, one loop."""

from amortopt.training.loop import EpochBatches as EpochBatches
from amortopt.training.loop import Trained as Trained
from amortopt.training.loop import train_epochs as train_epochs
from amortopt.training.loop import train_many as train_many
from amortopt.training.stepper import OptimizerName as OptimizerName
from amortopt.training.stepper import Schedule as Schedule
from amortopt.training.stepper import Stepper as Stepper

__all__ = ["EpochBatches", "OptimizerName", "Schedule", "Stepper", "Trained", "train_epochs", "train_many"]
