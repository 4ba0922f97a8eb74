"""Zoos: many base networks trained at once, stored, and read back."""

from amortopt.zoo.build import build_zoo
from amortopt.zoo.config import ZooConfig
from amortopt.zoo.dataset import Zoo, load_zoo

__all__ = ["Zoo", "ZooConfig", "build_zoo", "load_zoo"]
