"""Equivariant building blocks of metanets."""

from amortopt.nn.encoding import Blend as Blend
from amortopt.nn.message import GraphLayer as GraphLayer
from amortopt.nn.packed import PackedWiring as PackedWiring
from amortopt.nn.roles import RoleAssignment as RoleAssignment
from amortopt.nn.scale import RMSNorm as RMSNorm
from amortopt.nn.scale import canonical_factors as canonical_factors
from amortopt.nn.wiring import DenseWiring as DenseWiring
from amortopt.nn.wiring import Wiring as Wiring

__all__ = [
    "Blend",
    "DenseWiring",
    "GraphLayer",
    "PackedWiring",
    "RMSNorm",
    "RoleAssignment",
    "Wiring",
    "canonical_factors",
]
