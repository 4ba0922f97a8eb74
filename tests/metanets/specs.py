"""Symmetries of small networks of all kinds, written by hand, and params of such shapes."""

from __future__ import annotations

import math
import random

import torch

from amortopt._types import Params
from amortopt.symmetry import Axis, Block, NeuronGroup, SymmetrySpec


def written(groups: str, blocks: dict[str, str]) -> SymmetrySpec:
    """A spec from the notation of its table.

    Args:
        groups: A line each: name, size, kind, "yes" or "no" for permutable, and the owner if there is one.
        blocks: Label (the name, with slices in brackets if it is one) -> axes. An axis is a length, or
            ``h^+1·f^-1``, with ``@3`` behind it if it is a run of three units. A leading ``!`` is a buffer.
    """
    rows = [line.split() for line in groups.strip().splitlines()]
    found = {
        row[0]: NeuronGroup(row[0], int(row[1]), row[2], row[3] == "yes", "hand", *row[4:])  # type: ignore[arg-type]
        for row in rows
    }
    return SymmetrySpec(
        tuple(found.values()), tuple(_block(label, axes, found) for label, axes in blocks.items())
    )


def _block(label: str, text: str, groups: dict[str, NeuronGroup]) -> Block:
    name, _, inside = label.removeprefix("!").removesuffix("]").partition("[")
    bounds = [part.split(":") for part in inside.split(",")] if inside else []
    slices = tuple((int(start), int(stop)) for start, stop in bounds)
    axes = tuple(_axis(part.strip(), groups) for part in text.split(","))
    return Block(name, axes, slices, buffer=label.startswith("!"))


def _axis(text: str, groups: dict[str, NeuronGroup]) -> Axis:
    if text.isdigit():
        return Axis(None, 0, int(text), "kernel")
    text, _, run = text.partition("@")
    (name, exponent), *also = [term.split("^") for term in text.split("·")]
    size = int(run) if run else groups[name].size
    return Axis(name, int(exponent), size, also=tuple((other, int(power)) for other, power in also))


def params_like(spec: SymmetrySpec, count: int = 2, *, dtype: torch.dtype = torch.float64) -> Params:
    """Random params [count, ...] of a spec."""
    params = {}
    for name in spec.params:
        blocks = spec.blocks_of(name)
        shape = blocks[0].shape
        if blocks[0].slices:
            shape = tuple(map(max, zip(*([stop for _, stop in b.slices] for b in blocks), strict=True)))
        params[name] = torch.randn(count, *shape, dtype=dtype) / math.sqrt(math.prod(shape[1:]))
    return params


def _conv_norm(kind: str) -> SymmetrySpec:
    """Two convolutions, each with a batch norm and an activation, and a linear layer."""
    return written(
        f"""x 3 none no
            a 4 {kind} yes
            b 4 sign no a
            c 5 {kind} yes
            d 5 sign no c
            y 2 none no""",
        {
            "1.weight": "a^0·b^+1, x^-1, 3, 3",
            "1.bias": "a^0·b^+1",
            "norm1.gain": "a^+1·b^-1",
            "norm1.bias": "a^+1",
            "!norm1.mean": "a^0·b^+1",
            "!norm1.var": "a^0",
            "2.weight": "c^0·d^+1, a^-1, 3",
            "norm2.gain": "c^+1·d^-1",
            "norm2.bias": "c^+1",
            "head.weight": "y^+1, c^-1",
            "head.bias": "y^+1",
        },
    )


def _depthwise(order: str) -> SymmetrySpec:
    """Expand, depthwise, project, around a stream; the scale before the depthwise weights is a follower."""
    before, after = ("a", "b") if order == "before" else ("b", "a")
    return written(
        """x 3 none no
           s 4 positive yes
           a 6 positive yes
           b 6 positive no a
           y 2 none no""",
        {
            "stem": "s^+1, x^-1",
            "expand": f"a^{+1 if before == 'a' else '+0'}{'·b^+1' * (before == 'b')}, s^-1",
            "expand.bias": f"a^{+1 if before == 'a' else '+0'}{'·b^+1' * (before == 'b')}",
            "depthwise": f"{'a^+1·b^-1' if after == 'a' else 'a^-1·b^+1'}, 1, 3",
            "depthwise.bias": f"a^{+1 if after == 'a' else '+0'}{'·b^+1' * (after == 'b')}",
            "project": f"s^+1, a^{-1 if after == 'a' else '+0'}{'·b^-1' * (after == 'b')}",
            "head": "y^+1, s^-1",
        },
    )


def _grouped(kind: str) -> SymmetrySpec:
    """Two grouped convolutions over three groups of channels that may be exchanged."""
    return written(
        f"""x 2 none no
            g 3 none yes
            a 6 {kind} yes g
            b 9 {kind} yes g
            c 3 {kind} no g
            y 2 none no""",
        {
            "1": "a^+1, x^-1, 2",
            "2": "b^+1, a^-1@2, 3",
            "2.bias": "b^+1",
            "3": "c^+1, b^-1@3, 2",
            "3.bias": "c^+1",
            "head": "y^+1, c^-1",
        },
    )


_ATTENTION = """
s 5 none yes
h 3 {heads} yes
k 6 free yes h
v 6 free yes h
m 4 none yes
x 4 none no
y 2 none no
"""


def _attention() -> SymmetrySpec:
    """A transformer block with packed queries, keys and values."""
    return written(
        _ATTENTION.format(heads="none"),
        {
            "embed": "s^+1, x^-1",
            "norm.gain": "s^0",
            "qkv[0:6,0:5]": "k^+1, s^-1",
            "qkv[6:12,0:5]": "k^-1, s^-1",
            "qkv[12:18,0:5]": "v^+1, s^-1",
            "qkv.bias[0:6]": "k^+1",
            "qkv.bias[6:12]": "k^-1",
            "qkv.bias[12:18]": "v^+1",
            "out": "s^+1, v^-1",
            "up": "m^+1, s^-1",
            "down": "s^+1, m^-1",
            "head": "y^+1, s^-1",
        },
    )


def _heads_apart() -> SymmetrySpec:
    """Attention with weights [heads, channels, stream], a bilinear form in every head and a gate per head."""
    return written(
        _ATTENTION.format(heads="sign"),
        {
            "embed": "s^+1, x^-1",
            "q": "h^0, k^+1@2, s^-1",
            "form": "h^0, k^-1@2, v^-1@2",
            "k": "h^0, s^-1, v^+1@2",
            "k.bias": "h^+1, v^+1@2",
            "gate": "h^+1",
            "out": "s^+1, h^-1",
            "head": "y^+1, s^-1",
        },
    )


def _lstm(kind: str = "sign") -> SymmetrySpec:
    """An LSTM: only the cell gate's rows flip with the hidden units."""
    blocks = {}
    for gate, power in enumerate((0, 0, 1, 0)):
        rows = f"{5 * gate}:{5 * gate + 5}"
        blocks[f"ih[{rows},0:3]"] = f"h^{power}, x^-1"
        blocks[f"hh[{rows},0:5]"] = f"h^{power}, h^-1"
        blocks[f"bias[{rows}]"] = f"h^{power}"
    return written(f"x 3 none no\nh 5 {kind} yes\ny 2 none no", {**blocks, "head": "y^+1, h^-1"})


SPECS: dict[str, SymmetrySpec] = {
    "conv-norm-relu": _conv_norm("positive"),
    "conv-norm-tanh": _conv_norm("sign"),
    "conv-norm": _conv_norm("free"),
    "depthwise-before": _depthwise("before"),
    "depthwise-after": _depthwise("after"),
    "grouped-relu": _grouped("positive"),
    "grouped-tanh": _grouped("sign"),
    "attention": _attention(),
    "heads-apart": _heads_apart(),
    "lstm": _lstm(),
    "rnn-relu": written(
        "x 3 none no\nh 5 positive yes\ny 2 none no",
        {"ih": "h^+1, x^-1", "hh": "h^+1, h^-1", "bias": "h^+1", "head": "y^+1, h^-1"},
    ),
    "dense": written(
        "x 2 none no\na 3 positive yes\nb 4 sign yes\ny 2 none no",
        {
            "1": "a^+1, x^-1, 3",
            "2[0:4,0:2,0:3]": "b^+1, x^-1, 3",
            "2[0:4,2:5,0:3]": "b^+1, a^-1, 3",
            "3[0:2,0:2]": "y^+1, x^-1",
            "3[0:2,2:5]": "y^+1, a^-1",
            "3[0:2,5:9]": "y^+1, b^-1",
        },
    ),
    "mixer": written(
        "x 3 none no\na 4 sign yes\np 5 free yes\nt 3 none no\ny 2 none no",
        {
            "units": "a^+1, x^-1",
            "positions": "p^+1, t^-1",
            "head": "y^+1, a^-1, p^-1",
            "table": "a^+1, p^0",
            "twice": "a^+1, y^0, a^-1",
        },
    ),
    "powers": written(
        "x 3 none no\na 4 free yes\nb 4 free yes\nc 4 positive yes\ny 2 none no",
        {"w": "a^+2, x^-1", "u": "y^+1, a^-2", "v": "b^-1, x^-1", "both": "a^-1, b^+3", "s": "c^-2, 8"},
    ),
    "signs-of-known-units": written(
        "x 3 none no\na 4 sign no\nb 8 free no a\nc 4 sign no a\ny 2 none no",
        {
            "w": "a^+1, x^-1",
            "u": "b^+1·a^+1, x^-1",
            "u.bias": "b^+1·c^+1",
            "v": "y^+1, b^-1·a^-1·c^-1",
            "f": "a^+1·c^+1, 2",
        },
    ),
}
"""Name -> symmetry."""


def random_spec(seed: int) -> SymmetrySpec:
    """Groups within groups with any scalings, met in up to three axes by blocks with any exponents."""
    rng = random.Random(seed)
    groups = [NeuronGroup("x", 3, "none", False, "input"), NeuronGroup("y", 2, "none", False, "output")]
    for name in "abcde"[: rng.randint(1, 5)]:
        owner = rng.choice([None, None, *groups[2:]])
        size, within = (rng.randint(2, 4), None) if owner is None else (owner.size, owner.name)
        run = 1 if owner is None or owner.size > 6 else rng.choice([1, 1, 2, 3])
        permutable = rng.random() < (0.8 if run > 1 or owner is None else 0.0)
        groups.append(
            NeuronGroup(
                name,
                size * run,
                rng.choice(["positive", "sign", "free", "none"]),
                permutable,
                "random",
                within,
            )
        )
    table = SymmetrySpec(tuple(groups), ())
    blocks = []
    for name in "123456"[: rng.randint(3, 6)]:
        axes = [_random_axis(rng, table) for _ in range(rng.randint(1, 2))]
        blocks.append(Block(name, (*_random_run(rng, table), *axes)))
    # Something tells every factor.
    blocks += [
        Block(f"of {group.name}", (Axis(group.name, rng.choice([1, 1, -1]), group.size), Axis("x", -1, 3)))
        for group in groups[2:]
    ]
    return SymmetrySpec(tuple(groups), tuple(blocks))


def _random_axis(rng: random.Random, spec: SymmetrySpec) -> Axis:
    group = rng.choice(spec.groups)
    also = []
    for other in spec.groups:
        units = other.within if spec.run(other.name) == 1 else other.name
        if other != group and units in spec.owners(group.name) and rng.random() < 0.5:
            also.append((other.name, rng.choice([1, -1, 2])))
    return Axis(group.name, rng.choice([1, 1, -1, -1, 0]), group.size, also=tuple(also))


def _random_run(rng: random.Random, spec: SymmetrySpec) -> tuple[Axis, ...]:
    """Now and then two axes: one along a group's owner or along another group of it, one along its run."""
    nested = [group for group in spec.groups if group.within and 1 < spec.run(group.name) < group.size]
    if not nested or rng.random() < 0.6:
        return ()
    group = rng.choice(nested)
    along = spec.group(rng.choice([g.name for g in spec.groups if group.within in spec.owners(g.name)]))
    power = lambda: rng.choice([1, -1, 0])  # noqa: E731
    return Axis(along.name, power(), along.size), Axis(group.name, power(), spec.run(group.name))
