"""How much gauge freedom networks have: what their symmetry tables count, and what the functions say.

    python benchmarks/gauge_freedom.py             # a few seconds -> benchmarks/results/gauge_freedom.json
    python benchmarks/gauge_freedom.py --readme    # measures nothing: the README's table, from that file

For small networks of every kind: the parameters, the continuous rescalings and the discrete part that
``amortopt.symmetry.extract`` finds, and the null directions of the Jacobian of the outputs on many inputs
with respect to all weights, in float64. Where these are more than the rescalings, what else there is was
counted by hand, and the sum has to agree.

Then the theorem of arXiv 2510.08300: the rescalings of a convolutional layer are a strict subset of those of
the dense layer with the same inputs and outputs.
"""

from __future__ import annotations

import datetime
import json
import math
import platform
import time
from pathlib import Path
from typing import Any

import gauge_networks as networks
import torch
from jsonargparse import ArgumentParser
from torch import Tensor

from amortopt._types import Params
from amortopt._version import __version__
from amortopt.functional.networks import params_of
from amortopt.meta.one_pass.results import commit, hardware
from amortopt.symmetry import Element, SymmetrySpec, act, extract, identity, null_directions, sample
from amortopt.symmetry.gauge import gauge_dimension
from amortopt.symmetry.proof.running import worst
from amortopt.system.files import write_whole

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "gauge_freedom.json"
FORMAT = 1
BEGIN, END = "<!-- gauge:begin -->", "<!-- gauge:end -->"


def measure() -> dict[str, Any]:
    """All measurements, as the JSON file has them."""
    started, made_by = time.perf_counter(), commit()
    rows = [_row(small) for small in networks.NETWORKS]
    theorem = _theorem()
    return {
        "format": FORMAT,
        "benchmark": "gauge_freedom",
        "made_by": {
            "commit": made_by,
            "amortopt": __version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
            "hardware": hardware(torch.device("cpu")),
            "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            "seconds": round(time.perf_counter() - started, 1),
        },
        "networks": rows,
        "theorem": theorem,
    }


def _row(small: networks.Small) -> dict[str, Any]:
    """Counts of one network."""
    _say(small.title)
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
    beyond = [{"what": what, "count": number} for what, number in small.beyond]
    return {
        "network": small.title,
        "parameters": count,
        "continuous": gauge.continuous,
        "permutation_bits": gauge.permutation_bits,
        "sign_bits": gauge.sign_bits,
        "null_directions": null.dimension,
        "gap": _finite(null.gap),
        "beyond": beyond,
        "explained": null.dimension == gauge.continuous + sum(number for _, number in small.beyond),
        "proof": {"holds": proof.holds, "errors": dict(proof.errors)},
        "inputs": len(x),
    }


def _theorem() -> dict[str, Any]:
    """A convolutional network, and the dense one that computes the same."""
    _say("convolutional and dense layers")
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    conv, dense = networks.convolutional().double(), networks.dense().double()
    x = torch.randn(400, 1, 8, generator=generator, dtype=torch.float64)
    networks.make_generic(conv, x, generator)
    params = params_of(conv)
    dense.load_state_dict(networks.as_dense(params))
    specs = extract(conv, x[:5]), extract(dense, x[:5].flatten(1))
    sides = {}
    for name, network, spec, inputs in (
        ("convolutional", conv, specs[0], x),
        ("dense", dense, specs[1], x.flatten(1)),
    ):
        null = null_directions(network, inputs, noise=0)
        sides[name] = {
            "parameters": null.parameters,
            "continuous": gauge_dimension(spec).continuous,
            "null_directions": null.dimension,
            "gap": _finite(null.gap),
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
    subset = worst(_values(act(of_dense, wide, embedded)), _values(channels))

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


def _finite(number: float) -> float | None:
    return number if math.isfinite(number) else None


def _values(params: Params) -> list[Tensor]:
    return [params[name] for name in sorted(params)]


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


def readme_block(results: dict[str, Any]) -> str:
    """What stands between the README's marks, marks included."""
    lines = [
        BEGIN,
        "| small network | parameters | continuous rescalings | permutations + signs, bits | null directions "
        "of the Jacobian | beyond rescalings |",
        "|---|---:|---:|---:|---:|---|",
    ]
    for row in results["networks"]:
        beyond = "; ".join(f"{part['count']}: {part['what']}" for part in row["beyond"]) or "none"
        bits = f"{row['permutation_bits']:.0f} + {row['sign_bits']}"
        lines.append(
            f"| {row['network']} | {row['parameters']} | {row['continuous']} | {bits} | "
            f"{row['null_directions']} | {beyond} |"
        )
    theorem = results["theorem"]
    conv, dense = theorem["convolutional"], theorem["dense"]
    subset, kept = theorem["channel_scales_as_unit_scales"], theorem["unit_scales_keep_the_function"]
    lines += [
        "",
        f"Two convolutional layers with 3 and 2 channels on 6 and 4 positions have {conv['continuous']} "
        f"rescalings and {conv['null_directions']} null directions, the dense layers that compute the same "
        f"{dense['continuous']} and {dense['null_directions']}. To rescale channels is to rescale units "
        f"({f'to {subset:.0e}' if subset else 'exactly'}); to rescale dense units one by one keeps the "
        f"function (to {kept:.0e}), but no convolution has the weights that come out.",
        END,
    ]
    return "\n".join(lines)


def rewrite_readme(path: Path, block: str) -> None:
    """Put the block between the README's marks.

    Raises:
        ValueError: The README lacks the marks.
    """
    before, begin, rest = path.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{path} lacks the marks {BEGIN} and {END}; put them where the table belongs")
    write_whole(path, (before + block + after).encode())


def _say(what: str) -> None:
    print(what, flush=True)


def main(args: list[str] | None = None) -> None:
    """The command line."""
    parser = ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=RESULTS, help="The results file.")
    parser.add_argument("--readme", action="store_true", help="Only make the README's table anew.")
    given = parser.parse_args(args)
    if not given.readme:
        torch.set_num_threads(1)
        write_whole(given.out, (json.dumps(measure(), indent=1, allow_nan=False) + "\n").encode())
    block = readme_block(json.loads(given.out.read_text(encoding="utf-8")))
    if given.readme:
        rewrite_readme(ROOT / "README.md", block)
    print(block)


if __name__ == "__main__":
    main()
