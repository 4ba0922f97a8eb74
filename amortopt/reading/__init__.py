"""What weights say: trained predictors of networks' properties, applied to a user's networks."""

from __future__ import annotations

from amortopt.reading.predictor import Prediction as Prediction
from amortopt.reading.predictor import Predictor as Predictor
from amortopt.reading.predictor import load as load
from amortopt.reading.predictor import predict as predict
from amortopt.reading.scores import calibrate as calibrate
from amortopt.reading.scores import tau as tau
from amortopt.reading.scores import tau_bound as tau_bound

__all__ = ["Prediction", "Predictor", "calibrate", "load", "predict", "tau", "tau_bound"]
