"""Equivariant building blocks of metanets."""

from amortopt.nn.basis import count_layer_terms as count_layer_terms
from amortopt.nn.basis import count_terms as count_terms
from amortopt.nn.basis import unf_basis as unf_basis
from amortopt.nn.encoding import Blend as Blend
from amortopt.nn.message import GraphLayer as GraphLayer
from amortopt.nn.packed import PackedWiring as PackedWiring
from amortopt.nn.roles import RoleAssignment as RoleAssignment
from amortopt.nn.scale import RMSNorm as RMSNorm
from amortopt.nn.scale import canonical_factors as canonical_factors
from amortopt.nn.tensors import WeightTensors as WeightTensors
from amortopt.nn.unf import UNFLayer as UNFLayer
from amortopt.nn.unf import UNFPool as UNFPool
from amortopt.nn.wiring import DenseWiring as DenseWiring
from amortopt.nn.wiring import Wiring as Wiring

__all__ = [
    "Blend",
    "DenseWiring",
    "GraphLayer",
    "PackedWiring",
    "RMSNorm",
    "RoleAssignment",
    "UNFLayer",
    "UNFPool",
    "WeightTensors",
    "Wiring",
    "canonical_factors",
    "count_layer_terms",
    "count_terms",
    "unf_basis",
]
