"""Random numbers, which one seed gives to places, not to units: what meets them keeps its order."""

from __future__ import annotations

from amortopt.symmetry.rules.base import Call, Result, Value, rule
from amortopt.symmetry.rules.dimensions import places
from amortopt.symmetry.solve.labels import Labels


@rule("rand_like", "randn_like", "randint_like")
def of_a_shape(labels: Labels, call: Call) -> Result:
    """Of the shape of a tensor, whose values are not read."""
    del labels
    return Result(places(call.shape), call.name)


@rule(
    *("bernoulli", "multinomial", "poisson", "binomial", "normal", "uniform", "exponential", "geometric"),
    *("log_normal", "cauchy", "random"),
)
def drawn(labels: Labels, call: Call) -> Result:
    """Drawn with the numbers in a tensor as probabilities, rates or means, or written over it."""
    for value in call.args.values():
        if isinstance(value, Value):
            labels.pin(value.dims, call.name)
    x = call.args.get("self")
    dims = x.dims if isinstance(x, Value) and x.shape == call.shape else places(call.shape)
    return Result(dims, call.name)
