"""Recurrent layers and cells. A hidden unit is one unit in every gate; gates differ in their exponents."""

from __future__ import annotations

from collections.abc import Sequence

from amortopt.symmetry.axes import ScaleKind
from amortopt.symmetry.rules.base import Call, NoRule, Result, Value, rule, settings
from amortopt.symmetry.rules.dimensions import by_axis, inverse, mix_along, places
from amortopt.symmetry.solve.dims import Dim, Dims, Sum, fixed, sum_of
from amortopt.symmetry.solve.labels import Labels

_GATES = {"lstm": "i f g o", "gru": "r z n", "rnn_tanh": "n", "rnn_relu": "n"}
"""Gates in the order of the weights' rows; g and n are candidates for the state, the others lie in (0, 1)."""


@rule("lstm", "gru", "rnn_tanh", "rnn_relu")
def recurrent(labels: Labels, call: Call) -> Result:
    """All layers and directions over sequences: [N, T, units], or the [rows, units] of a packed sequence.

    A candidate goes through tanh, so it may change its sign, and with it the state; gates go through a
    sigmoid.
    """
    x = call.value("data" if "batch_sizes" in call.args else "input")
    labels.pin(x.dims[:-1], call.name)
    labels.mix(x.dims[:-1], (x.dims[-1],))
    params, ways = call.args["params"], 2 if call.args["bidirectional"] else 1
    runs = int(call.args["num_layers"]) * ways
    if not all(isinstance(p, Value) for p in params) or len(params) % runs:
        raise NoRule("its weights are not one list")
    # Weights of one layer in one direction: input, hidden, their biases, projection.
    count = len(params) // runs
    read, last = x.dims[-1], list[list[Dim]]()
    # Between layers units are left out by place, if dropout is on in eval mode.
    drops = bool(call.args["dropout"]) and call.args["train"] and not call.training
    for run in range(runs):
        weights = params[run * count : (run + 1) * count]
        last.append(_step(labels, call.name, read, weights, call.path or call.name))
        if len(last) % ways == 0:
            # Both directions, one after the other, are what the next layer reads.
            read = sum_of([state[0] for state in last[-ways:]])
            if drops and run < runs - 1:
                labels.freeze((read,))
    ends = [_last_state(labels, [s[k] for s in last], first, call) for k, first in enumerate(_states(call))]
    config = settings(call, "num_layers", "bidirectional", "batch_first")
    return Result((), call.name, config, parts=((*x.dims[:-1], read), *ends))


def _states(call: Call) -> list[Value]:
    """The states before the first step: h, for an LSTM also c."""
    states = call.args["hx"]
    return [s for s in (states if isinstance(states, list | tuple) else [states]) if isinstance(s, Value)]


def _step(labels: Labels, name: str, read: Dim, weights: Sequence[Value], origin: str) -> list[Dim]:
    """One layer in one direction: the units of its output, and those of its cell state."""
    kind: ScaleKind = "positive" if name == "rnn_relu" else "sign"
    gates = _GATES[name].split()
    state = labels.fresh(weights[0].shape[0] // len(gates), weights[0].param or origin)
    labels.limit((state,), kind, "relu" if name == "rnn_relu" else "tanh")
    gated = [state if gate in "gn" else labels.unscaled(state) for gate in gates]
    rows = (Sum(tuple(gated)),) if len(gated) > 1 else state
    matrices = [w for w in weights if w.ndim == 2]
    hidden = state
    if len(matrices) == 3:
        # h = P o: the projection's rows are the output, which the next step reads.
        hidden = matrices[2].dims[0]
        labels.tie(matrices[2].dims[1], inverse(labels, state), name)
    for value in weights:
        if value.ndim == 1 or value is not matrices[-1] or len(matrices) != 3:
            labels.tie(value.dims[0], rows, name)
    labels.tie(matrices[0].dims[1], inverse(labels, read), name)
    labels.tie(matrices[1].dims[1], inverse(labels, hidden), name)
    return [hidden, state]


def _last_state(labels: Labels, states: list[Dim], first: Value, call: Call) -> Dims:
    """Labels of a state [layers, (batch,) units] after the last step; before the first one they are equal."""
    index, inner = (fixed(1, "layer"), states[0]) if len(states) == 1 else labels.stack(states)
    several = len(states) > 1
    units = [labels.select((index, inner), 0, k)[0] for k in range(len(states))] if several else states
    labels.nest(first.dims)
    for k, dim in enumerate(units):
        before = labels.select(first.dims, 0, k) if several else first.dims[1:]
        labels.tie(before[-1], dim, call.name)
    labels.pin(first.dims[:-1], call.name)
    return (index, *first.dims[1:-1], inner)


@rule("lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell")
def cell(labels: Labels, call: Call) -> Result:
    """One step."""
    x, states = call.value("input"), _states(call)
    keys = ("w_ih", "w_hh", "b_ih", "b_hh")
    weights = [value for key in keys if (value := call.optional(key)) is not None]
    labels.limit(x.dims[:-1], "none", call.name)
    labels.mix(x.dims[:-1], (x.dims[-1],))
    after = _step(labels, call.name.removesuffix("_cell"), x.dims[-1], weights, call.path or call.name)
    for before, now in zip(states, after, strict=False):
        labels.limit(before.dims[:-1], "none", call.name)
        for dim, batch in zip(before.dims[:-1], x.dims[:-1], strict=True):
            labels.tie(dim, batch, call.name)
        labels.mix(before.dims[:-1], (before.dims[-1],))
        labels.tie(before.dims[-1], now, call.name)
        labels.align(by_axis(x.dims[:-1]), by_axis(before.dims[:-1]))
    parts = tuple((*x.dims[:-1], dim) for dim in after[: len(states)])
    if len(states) == 1:
        return Result(parts[0], call.name)
    return Result((), call.name, parts=parts)


@rule("_pack_padded_sequence")
def pack(labels: Labels, call: Call) -> Result:
    """[N, T, ...] -> the rows of all sequences without their padding [rows, ...], and rows per step."""
    x = call.value("input")
    _hold_rows(labels, x, 2, call)
    parts = ((*places(call.shape[:1]), *x.dims[2:]), places(call.shapes[1] or ()))
    return Result((), call.name, settings(call, "batch_first"), parts=parts)


@rule("_pad_packed_sequence")
def unpack(labels: Labels, call: Call) -> Result:
    """Rows of all sequences -> [N, T, ...], and the lengths. Padding other than zero forbids scales."""
    x = call.value("data")
    _hold_rows(labels, x, 1, call)
    if call.args.get("padding_value"):
        labels.limit(x.dims, "none", call.name)
    parts = ((*places(call.shape[:2]), *x.dims[1:]), places(call.shapes[1] or ()))
    return Result((), call.name, settings(call, "batch_first", "padding_value"), parts=parts)


def _hold_rows(labels: Labels, x: Value, rank: int, call: Call) -> None:
    """Fix the order along the first ``rank`` dimensions; lengths, or rows per step, are not moved either."""
    mix_along(labels, x.dims, *range(rank))
    labels.pin(x.dims[:rank], call.name)
    for key in ("lengths", "batch_sizes"):
        if (value := call.optional(key)) is not None:
            labels.pin(value.dims, call.name)
