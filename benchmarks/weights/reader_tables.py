"""Tables that the tasks of `readers` share. Measures nothing."""

from __future__ import annotations

from benchmarks.harness.numbers import mean, summary
from benchmarks.harness.store import Record, Records
from benchmarks.harness.tables import plus_minus, table

TITLES = {
    "picture": "the picture that it shows, by convolutions: runs the network",
    "probed_examples": "answers at learned inputs that start at training images: runs the network",
    "probed": "answers at learned inputs: runs the network",
    "scalegmn_b": "ScaleGMN-B: scale-equivariant, messages both ways",
    "scalegmn": "ScaleGMN: scale-equivariant, messages forward",
    "twin": "its symmetry-broken twin: permutations only",
    "scalegmn_b_random": "ScaleGMN-B, started with features of chance",
    "twin_random": "its twin, started with features of chance",
    "unf": "UNF: permutations only",
    "mlp": "MLP on canonicalised weights",
    "statistics": "statistics of the weights",
}


def runs(records: Records, zoo: str, reader: str) -> list[Record]:
    """Records of the runs that count, by seed."""
    start = f"{zoo}/{reader}/run/"
    return [record for key, record in sorted(records.items()) if key.startswith(start)]


def scored(records: Records, zoo: str, reader: str, score: str, *, unit: float = 1, digits: int = 3) -> str:
    """Mean test score with its interval over seeds, in units of 1 / ``unit``."""
    found = runs(records, zoo, reader)
    if not found:
        return "not measured"
    return plus_minus(summary([[unit * run["result"][score] for run in found]]), digits)


def measured(records: Records, zoos: list[str]) -> list[str]:
    """Readers that any of the zoos has runs of, in the order of the titles."""
    return [name for name in TITLES if any(runs(records, zoo, name) for zoo in zoos)]


def seeds(records: Records, zoos: list[str]) -> str:
    """What the scores are over."""
    counts = {len(runs(records, zoo, name)) for zoo in zoos for name in TITLES} - {0}
    return "± 95 % over seeds" if max(counts) > 1 else "one seed"


def all_rows(records: Records, zoo: str, score: str, *, unit: float = 1, digits: int = 3) -> str:
    """Every reader of a zoo, with what its runs took."""
    rows = []
    for name in measured(records, [zoo]):
        found = runs(records, zoo, name)
        identity, results = found[0]["identity"], [run["result"] for run in found]
        budget = identity["budget"]
        rows.append(
            [
                TITLES[name],
                scored(records, zoo, name, score, unit=unit, digits=digits),
                f"{unit * mean([r[f'val_{score}'] for r in results]):.{digits}f}",
                str(len(found)),
                f"{budget['steps']} of {budget['batch']}",
                f"{identity['learning_rate']:g}",
                str(results[0]["parameters"]),
                f"{mean([r['cpu_seconds'] for r in results]):.0f}",
            ]
        )
    suffix = ", %" if unit == 100 else ""
    head = ["reader", f"test{suffix} (95 % over seeds)", f"val{suffix}", "seeds", "steps, networks each"]
    return table([*head, "learning rate", "parameters", "CPU seconds per run"], rows, "lrrrrrrr")
