"""Weight spaces as group ids: the four of the published counts, and small pairs of all kinds."""

from __future__ import annotations

from amortopt.metanets.unf.basis import Spec

Sizes = dict[int, int]
SIZES: Sizes = {0: 4, 1: 5, 2: 6}
"""Units of the groups of ``PAIRS``: enough for every partition to be seen."""

PAIRS: tuple[tuple[Spec, Spec], ...] = (
    ((), ()),
    ((0,), ()),
    ((), (0, 0)),
    ((0,), (0,)),
    ((0, 1), (1, 0)),
    ((0,), (0, 1)),
    ((0, 0), (0,)),
    ((0, 0), (0, 0)),
    ((0, 0, 1), (1, 0)),
    ((0, 1), (2, 1)),
)


def transformer(blocks: int, *, width: int, inner: int, hidden: int, tokens: int) -> tuple[list[Spec], Sizes]:
    """Token embedding, blocks of norm, attention, norm, MLP, a last norm and a head with tokens of its
    own."""
    stream, vocabulary, out = 0, 1, 2
    sizes = {stream: width, vocabulary: tokens, out: tokens}
    norm: list[Spec] = [(stream,), (stream,)]
    specs: list[Spec] = [(vocabulary, stream)]
    for k in range(blocks):
        keys, values, units = 3 + 3 * k, 4 + 3 * k, 5 + 3 * k
        sizes |= {keys: inner, values: inner, units: hidden}
        specs += norm
        for group in (keys, keys, values):
            specs += [(group, stream), (group,)]
        specs += [(stream, values), (stream,), *norm, (units, stream), (units,), (stream, units), (stream,)]
    return [*specs, *norm, (out, stream), (out,)], sizes


LAYERS: dict[str, tuple[list[Spec], Sizes]] = {
    "mlp": ([(1, 0), (1,), (2, 1), (2,), (3, 2), (3,)], {0: 6, 1: 5, 2: 4, 3: 3}),
    "cnn": (
        [(1, 0, 10, 11), (1,), (2, 1, 12, 13), (2,), (3, 2, 14, 15), (3,), (4, 3), (4,)],
        {0: 1, 1: 3, 2: 2, 3: 4, 4: 2} | {k: 3 for k in range(10, 16)},
    ),
    "rnn": ([(0, 1), (2, 1), (2, 2), (2,), (2,), (0, 2), (0,)], {0: 5, 1: 3, 2: 4}),
    "transformer": transformer(1, width=4, inner=3, hidden=5, tokens=6),
    "transformer-12": transformer(12, width=2, inner=2, hidden=2, tokens=2),
}
"""Name -> specs and small sizes."""


def shapes(name: str) -> list[tuple[int, ...]]:
    """Shape of every tensor."""
    specs, sizes = LAYERS[name]
    return [tuple(sizes[group] for group in spec) for spec in specs]
