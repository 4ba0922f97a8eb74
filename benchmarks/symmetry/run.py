"""Symmetry of whole networks: what extraction finds, what it costs, whether it holds, and how much there is.

    python benchmarks/symmetry                  # everything -> benchmarks/results; 22 min on two cores
    python benchmarks/symmetry --quick          # the small networks -> runs/; 3 min
    python benchmarks/symmetry --only vit_b_16  # measures this one anew
    python benchmarks/symmetry --parts gauge    # only the count of null directions; 15 s
    python benchmarks/symmetry --models all     # networks of libraries (the extra "models")
    python benchmarks/symmetry --models timm,transformers --only transformers_bert
    python benchmarks/symmetry --programs 10000 # random programs, as the tests have them
    python benchmarks/symmetry --report         # measures nothing: tables

``coverage``: 31 networks, each in a process of its own with a time
limit; a record is kept as long as the network, the settings and the code of amortopt/symmetry are the same.
``--models``: some 250 networks as libraries give them, from small configurations; nothing is downloaded.
``gauge``: small networks of every kind, their rescalings against the null directions of their Jacobian.
"""

from __future__ import annotations

from benchmarks.harness.command import command_line, measure, parse, results, write_report
from benchmarks.symmetry import coverage, coverage_tables, gauge, models, models_tables, programs
from benchmarks.symmetry.coverage_cases import CASES
from benchmarks.symmetry.library import LIBRARIES, factories


def main(args: list[str] | None = None) -> None:
    """Run the command line."""
    names = [case.name for case in CASES]
    names += [f"{library}_{name}" for library in LIBRARIES for name in factories(library)]
    parser = command_line(__doc__, parts=("coverage", "gauge"), only=["NETWORK"], threads=2)
    parser.add_argument("--elements", type=int, default=3, help="random elements of a proof")
    parser.add_argument("--probes", type=int, default=64, help="elements outside the spec to try")
    parser.add_argument("--limit", type=float, default=900.0, help="seconds per network")
    parser.add_argument("--workers", type=int, default=1, help="networks of libraries at a time")
    parser.add_argument(
        "--models", help=f"networks of libraries instead: all, or some of {', '.join(LIBRARIES)}"
    )
    parser.add_argument("--programs", type=int, help="so many random programs instead")
    options = parse(parser, args, names)
    if options.programs:
        with results(programs.BENCHMARK, options) as store:
            if not options.report:
                measure(store, programs.parts(options.programs), again=options.again)
            write_report(store, programs.markdown(store.records))
        return
    if options.models:
        with results(models.BENCHMARK, options) as store:
            if not options.report:
                measure(store, models.parts(options, store), again=options.again or bool(options.only))
            write_report(store, models_tables.markdown(store.records))
        return
    if "coverage" in options.parts:
        with results(coverage.BENCHMARK, options) as store:
            if not options.report:
                again = options.again or bool(options.only)
                measure(store, coverage.parts(options), again=again)
            write_report(store, coverage_tables.markdown(store.records))
    if "gauge" in options.parts and not options.only:
        with results(gauge.BENCHMARK, options) as store:
            if not options.report:
                measure(store, gauge.parts(), again=options.again)
            write_report(store, gauge.markdown(store.records))
