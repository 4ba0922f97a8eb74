"""Recurrent layers and cells. A hidden unit is one unit in every gate; gates differ in their exponents."""

from __future__ import annotations

from collections.abc import Sequence

from amortopt.symmetry.axes import ScaleKind
from amortopt.symmetry.rules.base import Call, NoRule, Result, Value, by_axis, rule
from amortopt.symmetry.solve.dims import Dim, Dims, Sum, fixed, sum_of, with_exponent
from amortopt.symmetry.solve.labels import Labels

_GATES = {"lstm": "i f g o", "gru": "r z n", "rnn_tanh": "n", "rnn_relu": "n"}
"""Gates in the order of the weights' rows; g and n are candidates for the state, the others lie in (0, 1)."""


@rule("lstm", "gru", "rnn_tanh", "rnn_relu")
def recurrent(labels: Labels, call: Call) -> Result:
    """All layers and directions over a sequence.

    A candidate goes through tanh, so it may change its sign, and with it the state; gates go through a
    sigmoid.
    """
    if "batch_sizes" in call.args or "data" in call.args:
        raise NoRule("its sequences are packed")
    x = call.value("input")
    labels.pin(x.dims[:-1], call.name)
    labels.mix(x.dims[:-1], (x.dims[-1],))
    given = call.args["hx"]
    states = [s for s in (given if isinstance(given, list | tuple) else [given]) if isinstance(s, Value)]
    weights = _by_layer(call)
    ways = 2 if call.args["bidirectional"] else 1
    read, finals = x.dims[-1], list[list[Dim]]()
    for layer in range(int(call.args["num_layers"])):
        outputs: list[Dim] = []
        for way in range(ways):
            state = _step(labels, call.name, read, weights[layer * ways + way], call.path or call.name)
            finals.append(state)
            outputs.append(state[0])
        read = sum_of(outputs)
    ends = [_ends(labels, [state[k] for state in finals], given, call) for k, given in enumerate(states)]
    out = (*x.dims[:-1], read)
    config = tuple((key, str(call.args[key])) for key in ("num_layers", "bidirectional", "batch_first"))
    return Result((), call.name, config, parts=(out, *ends))


def _by_layer(call: Call) -> list[list[Value]]:
    """Weights of every layer and direction: input, hidden, their biases, projection."""
    params = call.args["params"]
    ways = 2 if call.args["bidirectional"] else 1
    count = int(call.args["num_layers"]) * ways
    if not all(isinstance(p, Value) for p in params) or len(params) % count:
        raise NoRule("its weights are not one list")
    each = len(params) // count
    return [list(params[k * each : (k + 1) * each]) for k in range(count)]


def _step(labels: Labels, name: str, read: Dim, weights: Sequence[Value], origin: str) -> list[Dim]:
    """One layer in one direction; what its output and its other states are made of."""
    kind: ScaleKind = "positive" if name == "rnn_relu" else "sign"
    gates = _GATES[name].split()
    size = weights[0].shape[0] // len(gates)
    own = weights[0].param or origin
    state = labels.fresh(size, own)
    labels.limit((state,), kind, "relu" if name == "rnn_relu" else "tanh")
    gated = [state if gate in "gn" else labels.unscaled(state) for gate in gates]
    rows = (Sum(tuple(gated)),) if len(gated) > 1 else state
    matrices = [w for w in weights if w.ndim == 2]
    hidden = state
    if len(matrices) == 3:
        # A projection writes what is read again.
        hidden = matrices[2].dims[0]
        labels.tie(matrices[2].dims[1], with_exponent(labels.resolve(state), -1), name)
    for value in weights:
        if value.ndim == 1 or value is not matrices[-1] or len(matrices) != 3:
            labels.tie(value.dims[0], rows, name)
    labels.tie(matrices[0].dims[1], with_exponent(labels.resolve(read), -1), name)
    labels.tie(matrices[1].dims[1], with_exponent(labels.resolve(hidden), -1), name)
    return [hidden, state]


def _ends(labels: Labels, states: list[Dim], given: Value, call: Call) -> Dims:
    """Labels of the last states [layers, (batch,) units], as those of the first ones that were given."""
    index, inner = (fixed(1, "layer"), states[0]) if len(states) == 1 else labels.stack(states)
    parts = (
        [labels.select((index, inner), 0, k)[0] for k in range(len(states))] if len(states) > 1 else states
    )
    labels.nest(given.dims)
    for k, part in enumerate(parts):
        first = labels.select(given.dims, 0, k) if len(states) > 1 else given.dims[1:]
        labels.tie(first[-1], part, call.name)
    batch = given.dims[1:-1]
    labels.pin((given.dims[0], *batch), call.name)
    return (index, *batch, inner)


@rule("lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell")
def cell(labels: Labels, call: Call) -> Result:
    """One step."""
    x, given = call.value("input"), call.args["hx"]
    states = [s for s in (given if isinstance(given, list | tuple) else [given]) if isinstance(s, Value)]
    keys = ("w_ih", "w_hh", "b_ih", "b_hh")
    weights = [value for key in keys if (value := call.optional(key)) is not None]
    labels.limit(x.dims[:-1], "none", call.name)
    labels.mix(x.dims[:-1], (x.dims[-1],))
    after = _step(labels, call.name.removesuffix("_cell"), x.dims[-1], weights, call.path or call.name)
    for before, now in zip(states, after, strict=False):
        labels.limit(before.dims[:-1], "none", call.name)
        for own, other in zip(before.dims[:-1], x.dims[:-1], strict=True):
            labels.tie(own, other, call.name)
        labels.mix(before.dims[:-1], (before.dims[-1],))
        labels.tie(before.dims[-1], now, call.name)
        labels.align(by_axis(x.dims[:-1]), by_axis(before.dims[:-1]))
    parts = tuple((*x.dims[:-1], dim) for dim in after[: len(states)])
    if len(states) == 1:
        return Result(parts[0], call.name)
    return Result((), call.name, parts=parts)
