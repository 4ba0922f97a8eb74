"""A spec with everything that one can say, which no network has."""

from __future__ import annotations

import torch

from amortopt._types import Params
from amortopt.symmetry import Axis, Block, NeuronGroup, SymmetrySpec


def nested() -> tuple[SymmetrySpec, Params]:
    """Everything that a spec can say: owners of owners, followers, runs, slices, powers."""
    groups = (
        NeuronGroup("in", 3, "none", False, "input"),
        NeuronGroup("heads", 3, "sign", True, ""),
        NeuronGroup("qk", 6, "free", True, "", "heads"),
        NeuronGroup("scale", 6, "sign", False, "", "qk"),
        NeuronGroup("fine", 12, "positive", True, "", "qk"),
        NeuronGroup("vo", 3, "positive", False, "", "heads"),
        NeuronGroup("still", 9, "free", False, "", "heads"),
        NeuronGroup("fixed", 3, "free", False, "", "in"),
    )
    whole = [
        Block("w", (Axis("qk", 1, 6, also=(("scale", -1), ("heads", 2))), Axis("in", -1, 3))),
        Block("kernel", (Axis("vo", 0, 3, also=(("heads", -2),)), Axis("fine", -1, 12), Axis(None, 0, 2))),
        Block("squared", (Axis("scale", 2, 6, also=(("qk", -1),)),)),
        Block("repeated", (Axis("heads", 1, 3), Axis("heads", -1, 3))),
        Block("own", (Axis("fixed", 1, 3, also=(("in", 1),)), Axis("still", 1, 9))),
        # Grouped convolutions: units of a group read one run of another, and the two axes in either order.
        Block("grouped", (Axis("qk", 1, 6), Axis("still", -1, 3, also=(("vo", 1),)), Axis(None, 0, 2, "k"))),
        Block("turned", (Axis(None, 0, 2), Axis("qk", -1, 2, also=(("heads", 1),)), Axis("still", 1, 9))),
        Block("per-owner", (Axis("heads", 1, 3), Axis("qk", -2, 2))),
        Block("finest", (Axis("fine", 2, 12), Axis("still", -2, 3), Axis("in", 0, 3))),
        Block("stats", (Axis("scale", 2, 6),), buffer=True),
    ]  # fmt: skip
    sliced = [
        Block("rows", (Axis("heads", 1, 3), Axis("qk", 0, 6)), ((0, 3), (0, 6))),
        Block("rows", (Axis("in", 1, 3), Axis("qk", -1, 6)), ((3, 6), (0, 6))),
        Block("columns", (Axis("heads", -1, 3), Axis("still", 1, 9)), ((0, 3), (2, 11))),
        Block("columns", (Axis("heads", 1, 3), Axis(None, 0, 2, "rest")), ((0, 3), (0, 2))),
        Block("both", (Axis("heads", 1, 3), Axis(None, 0, 5, "rest")), ((0, 3), (0, 5))),
        Block("both", (Axis("heads", 0, 3), Axis("qk", 2, 6)), ((3, 6), (0, 6))),
        Block("both", (Axis("vo", 1, 3), Axis(None, 0, 1)), ((0, 3), (5, 6))),
        Block("folded", (Axis("qk", 1, 6), Axis("heads", -1, 3)), ((1, 19), (0, 1))),
        Block("folded", (Axis(None, 0, 1),), ((0, 1), (0, 1))),
    ]
    shapes = {"rows": (6, 6), "columns": (3, 11), "both": (6, 6), "folded": (19, 1)}
    shapes |= {block.param: block.shape for block in whole}
    params = {name: torch.randn(shape, dtype=torch.float64) for name, shape in shapes.items()}
    return SymmetrySpec(groups, (*whole, *sliced)), params
