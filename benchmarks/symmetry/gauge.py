"""How much gauge freedom networks have, by their symmetry tables and by their null directions.

For small networks of every kind: the parameters, the continuous rescalings and the discrete part that
``amortopt.symmetry.extract`` finds, and the null directions of the Jacobian of the outputs on many inputs
with respect to all weights, in float64. Where these are more than the rescalings, what else there is was
counted by hand, and the sum has to agree.

Then the theorem of arXiv 2510.08300: the rescalings of a convolutional layer are a strict subset of those of
the dense layer with the same inputs and outputs.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from amortopt._types import Params
from amortopt.functional.networks import params_of
from amortopt.symmetry import Element, SymmetrySpec, act, extract, identity, null_directions, sample
from amortopt.symmetry.gauge import gauge_dimension
from amortopt.symmetry.proof.running import worst
from benchmarks.harness.command import Part
from benchmarks.harness.store import Record, Records
from benchmarks.harness.tables import document, made_by, table
from benchmarks.symmetry import gauge_networks as networks
from benchmarks.symmetry.coverage import code_digest

BENCHMARK = "gauge_freedom"


def parts() -> list[Part]:
    """A part per network, and the theorem."""
    code = {"code": code_digest()}
    counts = [Part(f"network/{small.title}", code, partial(count, small)) for small in networks.NETWORKS]
    return [*counts, Part("theorem", code, theorem)]


def count(small: networks.Small, advance: object = None) -> dict[str, Any]:
    """Counts of one network."""
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    network = small.build().double()
    count = sum(p.numel() for p in network.parameters())
    # Three outputs each.
    x = torch.randn(count, *small.input, generator=generator, dtype=torch.float64)
    networks.make_generic(network, x, generator)
    spec = extract(network, x[:5])
    proof = spec.verify(network, x[:5])
    gauge, null = gauge_dimension(spec), null_directions(network, x, noise=0)
    return {
        "network": small.title,
        "parameters": count,
        "continuous": gauge.continuous,
        "permutation_bits": gauge.permutation_bits,
        "sign_bits": gauge.sign_bits,
        "null_directions": null.dimension,
        "gap": null.gap,
        "beyond": [{"what": what, "count": number} for what, number in small.beyond],
        "explained": null.dimension == gauge.continuous + sum(number for _, number in small.beyond),
        "proof": {"holds": proof.holds, "errors": dict(proof.errors)},
        "inputs": len(x),
    }


def theorem(advance: object = None) -> dict[str, Any]:
    """A convolutional network, and the dense one that computes the same."""
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    conv, dense = networks.convolutional().double(), networks.dense().double()
    x = torch.randn(400, 1, 8, generator=generator, dtype=torch.float64)
    networks.make_generic(conv, x, generator)
    params = params_of(conv)
    dense.load_state_dict(networks.as_dense(params))
    specs = extract(conv, x[:5]), extract(dense, x[:5].flatten(1))
    sides = {}
    for name, network, spec, inputs in zip(
        ("convolutional", "dense"), (conv, dense), specs, (x, x.flatten(1)), strict=True
    ):
        null = null_directions(network, inputs, noise=0)
        sides[name] = {
            "parameters": null.parameters,
            "continuous": gauge_dimension(spec).continuous,
            "null_directions": null.dimension,
            "gap": null.gap,
        }
    with torch.no_grad():
        same = worst([dense(x.flatten(1))], [conv(x)])
    return {**sides, "difference_of_outputs": same, **_subset(specs, params, dense, x, generator)}


def _subset(
    specs: tuple[SymmetrySpec, SymmetrySpec],
    params: Params,
    dense: torch.nn.Module,
    x: Tensor,
    generator: torch.Generator,
) -> dict[str, float]:
    """Every rescaling of channels is one of dense units; not every one of dense units is one of channels."""
    of_conv, of_dense = specs
    positions = {"h1": 6, "h2": 4}
    scales = sample(of_conv, generator=generator).scales
    narrow, wide = identity(of_conv), identity(of_dense)
    for name, count in positions.items():
        narrow.scales[name] = scales[name]
        wide.scales[name] = scales[name].repeat_interleave(count)
    embedded = networks.as_dense(params)
    channels = networks.as_dense(act(of_conv, narrow, params))
    moved = act(of_dense, wide, embedded)
    subset = worst(list(moved.values()), [channels[name] for name in moved])

    free = sample(of_dense, generator=generator).scales
    single = Element(identity(of_dense).permutations, free)
    moved = act(of_dense, single, embedded)
    with torch.no_grad():
        before, after = dense(x.flatten(1)), torch.func.functional_call(dense, moved, (x.flatten(1),))
    return {
        "channel_scales_as_unit_scales": subset,
        "unit_scales_keep_the_function": worst([after], [before]),
        "unit_scales_leave_the_convolutions": _distance_from_convolutions(moved["0.weight"]),
    }


def _distance_from_convolutions(weight: Tensor) -> float:
    """Relative distance of the first dense weight [18, 8] from the nearest one that is a convolution."""
    kernels = weight.view(3, 6, 8)
    shared = torch.stack([kernels[:, p, p : p + 3] for p in range(6)]).mean(0)
    nearest = networks.as_dense(
        {
            "0.weight": shared[:, None], "0.bias": shared.new_zeros(3),
            "2.weight": shared.new_zeros(2, 3, 3), "2.bias": shared.new_zeros(2),
            "5.weight": shared.new_zeros(2, 8), "5.bias": shared.new_zeros(2),
        }
    )["0.weight"]  # fmt: skip
    return worst([weight], [nearest])


def block(records: Records) -> str:
    """The table of the docs."""
    rows = []
    for small in networks.NETWORKS:
        row = records[f"network/{small.title}"]["result"]
        bits = f"{row['permutation_bits']:.0f} + {row['sign_bits']}"
        beyond = "; ".join(f"{part['count']}: {part['what']}" for part in row["beyond"]) or "none"
        counts = row["parameters"], row["continuous"], bits, row["null_directions"]
        rows.append([row["network"], *map(str, counts), beyond])
    head = ["small network", "parameters", "continuous rescalings", "permutations + signs, bits"]
    head += ["null directions of the Jacobian", "beyond rescalings"]
    return table(head, rows, "lrrrrl") + "\n\n" + _verdict(records["theorem"]["result"])


def _verdict(theorem: Record) -> str:
    conv, dense = theorem["convolutional"], theorem["dense"]
    subset, kept = theorem["channel_scales_as_unit_scales"], theorem["unit_scales_keep_the_function"]
    return (
        f"Two convolutional layers with 3 and 2 channels on 6 and 4 positions have {conv['continuous']} "
        f"rescalings and {conv['null_directions']} null directions, the dense layers that compute the same "
        f"{dense['continuous']} and {dense['null_directions']}. To rescale channels is to rescale units "
        f"({f'to {subset:.0e}' if subset else 'exactly'}); to rescale dense units one by one keeps the "
        f"function (to {kept:.0e}), but no convolution has the weights that come out."
    )


def markdown(records: Records) -> str:
    """Everything, for people."""
    return document(["# Gauge freedom", block(records), made_by(records)])
