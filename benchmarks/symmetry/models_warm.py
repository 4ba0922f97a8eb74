"""Loads what torch.export loads when first used, in the process that those of models.py are copies of."""

from __future__ import annotations

import torch
from torch import nn

from amortopt.symmetry import extract

torch.set_num_threads(1)
extract(nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 1)), torch.zeros(2, 2))
