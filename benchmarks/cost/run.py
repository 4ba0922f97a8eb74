"""What metanets and UNF layers cost, against their published forms.

    python benchmarks/cost                      # 5 min -> benchmarks/results/throughput.*, unf_layer.*
    python benchmarks/cost --quick              # 2 min -> runs/
    python benchmarks/cost --parts throughput --threads 2 --out FOLDER
    python benchmarks/cost --parts layer --jax-python PATH    # 15 min, also against compiled JAX
    python benchmarks/cost --report             # measures nothing: tables

``throughput``: meta-steps and single passes of a metanet, and how much faster and leaner it is than one in
edge-list form; packed batches of many widths against a pass per shape. ``layer``: a UNF layer against its
published form compiled by JAX and against the slow sum of all terms. PATH is the Python of an environment
with jax (``python -m venv E; E/bin/pip install "jax[cpu]"``).

Times are the shortest of several rounds, in which what is compared takes turns; the machine should do nothing
else. All sides and processes run with the same number of threads and the same allocator settings.
"""

from __future__ import annotations

import os
from pathlib import Path

import torch

from benchmarks.cost import layer, mixed_widths, throughput
from benchmarks.harness.command import command_line, measure, parse, results, write_report


def main(args: list[str] | None = None) -> None:
    """Run the command line."""
    parser = command_line(__doc__, parts=("throughput", "layer"), threads=1)
    parser.add_argument("--jax-python", type=Path, help="Python of an environment with jax")
    options = parse(parser, args)
    if "throughput" in options.parts:
        with results(throughput.BENCHMARK, options) as store:
            if not options.report:
                plan = throughput.QUICK if options.quick else throughput.Plan()
                mixed = mixed_widths.parts(8, (1,), 2) if options.quick else mixed_widths.parts()
                measure(store, [*throughput.parts(plan), *mixed], again=options.again)
            write_report(store, throughput.markdown(store.records))
    if "layer" in options.parts:
        with results(layer.BENCHMARK, options) as store:
            if not options.report:
                allowed = os.sched_getaffinity(0)
                torch.set_num_threads(1)
                try:
                    os.sched_setaffinity(0, {layer.core()})
                    plan = layer.QUICK if options.quick else layer.Plan()
                    measure(store, layer.parts(plan, options.jax_python, store), again=options.again)
                finally:
                    os.sched_setaffinity(0, allowed)
                    torch.set_num_threads(options.threads)
            write_report(store, layer.markdown(store.records))
