"""Zoos: many base networks trained at once, stored, and read back."""

from amortopt.zoo.build import build_zoo as build_zoo
from amortopt.zoo.config import ZooConfig as ZooConfig
from amortopt.zoo.dataset import Zoo as Zoo
from amortopt.zoo.dataset import load_zoo as load_zoo

__all__ = ["Zoo", "ZooConfig", "build_zoo", "load_zoo"]
