"""Params as a graph: node sets of units, and edges between them."""

from amortopt.graph.blocks import EdgeBlock as EdgeBlock
from amortopt.graph.blocks import End as End
from amortopt.graph.blocks import Factor as Factor
from amortopt.graph.blocks import NodeBlock as NodeBlock
from amortopt.graph.blocks import Scale as Scale
from amortopt.graph.blocks import scales_of as scales_of
from amortopt.graph.factors import Teller as Teller
from amortopt.graph.factors import Told as Told
from amortopt.graph.layout import GraphLayout as GraphLayout
from amortopt.graph.sets import NodeSet as NodeSet
from amortopt.graph.sets import Part as Part
from amortopt.graph.sets import Symmetry as Symmetry

__all__ = [
    "EdgeBlock",
    "End",
    "Factor",
    "GraphLayout",
    "NodeBlock",
    "NodeSet",
    "Part",
    "Scale",
    "Symmetry",
    "Teller",
    "Told",
    "scales_of",
]
