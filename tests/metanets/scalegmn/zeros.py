"""Networks with weights that are exactly zero."""

from __future__ import annotations

from amortopt._types import Params

DEAD = ("incoming", "outgoing", "both", "chain", "pair", "weight", "layer", "all")
"""What ``zero`` can do."""


def zero(params: Params, what: str) -> None:
    """Set weights [B, ...] to exactly zero in place: of the first two units, or whole parameters."""
    weights = [name for name in params if name.endswith("weight") and params[name].ndim > 2]
    first, second = weights[:2]
    bias, second_bias = (name.replace("weight", "bias") for name in (first, second))
    if what in ("incoming", "both", "chain", "pair"):
        params[first][:, :2] = 0
        params[bias][:, :2] = 0
    if what in ("outgoing", "both"):
        params[second][:, :, :2] = 0
    if what in ("chain", "pair"):
        # A unit of the next layer that reads only dead units ...
        params[second][:, 1, 2:] = 0
        params[second_bias][:, 1] = 0
    if what == "pair":
        # ... and that nothing reads: both ends of a weight have no scale.
        for name in weights[2:]:
            if params[name].shape[2] % params[second].shape[1] == 0:
                params[name].unflatten(2, (params[second].shape[1], -1))[:, :, 1] = 0
    if what in ("weight", "all"):
        params[second].zero_()
    if what in ("layer", "all"):
        params[first].zero_()
        params[bias].zero_()
    if what == "all":
        for p in params.values():
            p.zero_()
