"""What coverage.py measures of one network; the program of a separate process.

Each stage is a line of JSON on the standard output, so that what is done counts if a later one does not end.
"""

from __future__ import annotations

import json
import math
import re
import resource
import sys
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

from amortopt.symmetry import Block, ScaleKind, SymmetrySpec, UnknownOperationWarning, extract
from benchmarks.symmetry.coverage_cases import Case, case_named

MESSAGES = 10


def stages(case: Case, *, elements: int, probes: int | None) -> Iterator[dict[str, Any]]:
    """Extract, count, prove.

    Args:
        case: The network.
        elements: Random elements of the proof.
        probes: Elements outside the spec that the proof tries; None for all.

    Yields:
        Fields of the record, more with every stage.
    """
    torch.manual_seed(0)
    net, x = case.build(), case.example_input()
    yield {
        "parameters": sum(parameter.numel() for parameter in net.parameters()),
        "start_bytes": peak_bytes(),
    }
    spec, fields = extracted(net, x)
    yield fields
    gauge = spec.gauge_dimension()
    yield {
        "gauge": {
            "continuous": gauge.continuous,
            "permutation_bits": round(gauge.permutation_bits, 1),
            "sign_bits": gauge.sign_bits,
        }
    }
    yield {"proof": proved(spec, net, x, elements=elements, probes=probes)}


def proved(
    spec: SymmetrySpec, net: nn.Module, x: Any, *, elements: int, probes: int | None
) -> dict[str, Any]:
    """A proof, as a record."""
    proof = spec.verify(net, x, elements=elements, probes=probes)
    return {
        "holds": proof.holds,
        "errors": dict(proof.errors),
        "statistics": proof.statistics,
        "rtol": proof.rtol,
        "elements": proof.elements,
        "probes": proof.probes,
        "possible_probes": proof.possible,
        "larger": [str(larger) for larger in proof.larger],
        "notes": list(proof.notes),
        "seconds": round(proof.seconds, 2),
        "peak_bytes": peak_bytes(),
    }


def extracted(net: nn.Module, x: Any) -> tuple[SymmetrySpec, dict[str, Any]]:
    """A network's spec, and what to record of it."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UnknownOperationWarning)
        started = time.perf_counter()
        spec = extract(net, x)
        seconds = time.perf_counter() - started
    messages = [str(w.message) for w in caught if issubclass(w.category, UnknownOperationWarning)]
    # Other messages are about parameters that only training mode uses.
    rules = [message for message in messages if message.startswith("operation ")]
    unknown = Counter(names[0] for m in rules if (names := re.findall(r"[\w:]+\.\w+", m)))
    kinds: dict[ScaleKind, int] = {"positive": 0, "sign": 0, "free": 0, "none": 0}
    groups = [group for group in spec.groups if _moves(spec, group.name)]
    for group in groups:
        kinds[group.kind] += 1
    return spec, {
        "extract_seconds": round(seconds, 2),
        "extract_peak_bytes": peak_bytes(),
        "groups": kinds,
        "permuted_groups": sum(group.permutable for group in groups),
        "largest_group": max((group.size for group in groups), default=0),
        "moved_share": round(moved_share(spec), 6),
        "unmoved": unmoved(spec),
        "without_rule": dict(unknown),
        "messages": messages[:MESSAGES],
    }


def moved_share(spec: SymmetrySpec) -> float:
    """Share of the parameters that at least one element moves or rescales."""
    return _share(spec, [block for block in spec.blocks if _block_moves(spec, block)])


def unmoved(spec: SymmetrySpec) -> dict[str, Any]:
    """Why the other parameters do not move, as shares of all.

    Returns:
        ``unused``: forward does not read them in this call; ``tied``: all of their axes are along inputs,
        outputs or fixed positions; ``held``: origin of a hidden group that may not move -> share along it.
    """
    blocks: dict[str, list[Block]] = {}
    for block in spec.blocks:
        if _block_moves(spec, block):
            continue
        groups = [spec.group(name) for name in block.groups]
        ends = ("input", "output")  # with what limits their scales behind it
        hidden = [g for g in groups if g.origin.split(",")[0] not in ends and g.size > 1]
        if hidden:
            reason = max(hidden, key=lambda group: group.size).origin
        else:
            reason = " unused" if all(axis.role == "unused" for axis in block.axes) else " tied"
        blocks.setdefault(reason, []).append(block)
    shares = {reason: round(_share(spec, part), 6) for reason, part in blocks.items()}
    return {
        "unused": shares.pop(" unused", 0.0),
        "tied": shares.pop(" tied", 0.0),
        "held": dict(sorted(shares.items(), key=lambda item: -item[1])),
    }


def _share(spec: SymmetrySpec, blocks: Sequence[Block]) -> float:
    sizes = [
        sum(math.prod(block.shape) for block in part if not block.buffer) for part in (blocks, spec.blocks)
    ]
    return sizes[0] / max(sizes[1], 1)


def _block_moves(spec: SymmetrySpec, block: Block) -> bool:
    scaled = any(spec.group(name).kind != "none" for axis in block.axes for name, _ in axis.scales)
    return scaled or any(spec.group(o).permutable for group in block.groups for o in spec.owners(group))


def _moves(spec: SymmetrySpec, name: str) -> bool:
    group = spec.group(name)
    return group.kind != "none" or any(spec.group(owner).permutable for owner in spec.owners(name))


def peak_bytes() -> int:
    """Largest resident set of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def main(request: dict[str, Any]) -> None:
    """Print the stages of the requested case; an error is one too."""
    torch.set_num_threads(request["threads"])
    try:
        for fields in stages(
            case_named(request["case"]), elements=request["elements"], probes=request["probes"]
        ):
            print(json.dumps(fields), flush=True)
    except Exception as error:
        text = " ".join(str(error).split())
        print(json.dumps({"error": f"{type(error).__name__}: {text[:500]}"}), flush=True)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
