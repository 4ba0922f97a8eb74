"""How well the success rate of small recurrent networks can be told from their weights alone.

    python benchmarks/tiny_rnn_zoo.py            # builds zoos/tiny_rnn -> benchmarks/results/tiny_rnn_zoo.*
    python benchmarks/tiny_rnn_zoo.py --quick    # another, small zoo -> runs/tiny_rnn_zoo_quick
    python benchmarks/tiny_rnn_zoo.py --predictors unf,deep_set --threads 2
    python benchmarks/tiny_rnn_zoo.py --count 10000 --zoo zoos/tiny_rnn_10000 --out runs/tiny_rnn_10000

The networks are those of `amortopt zoo tiny-rnn`; the published experiment has 10,000 of its own (Zhou, Finn
and Harrison 2024, arXiv 2402.05232). Every predictor gets the same number of settings to try on the val
networks, of steps, of networks per step and of seeds. The score is Kendall's tau-b on the test networks,
which are met once. What was measured by the same plan is not measured again, so a run may be interrupted.
"""

from __future__ import annotations

import datetime
import itertools
import json
import math
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
from _readme import rewrite_readme
from jsonargparse import ArgumentParser
from rnn_predictors import Budget, Data, DeepSet, StatNN, Trained, blocks_of, predict, tau, train
from rnn_unf import UNF
from scipy import stats
from torch import nn

from amortopt._version import __version__
from amortopt.meta.one_pass.results import commit, hardware
from amortopt.symmetry import SymmetrySpec, extract
from amortopt.system.files import write_whole
from amortopt.system.memory import keep_freed_memory
from amortopt.zoo import Zoo, load_zoo
from amortopt.zoo.formats.tiny_rnn_zoo import TinyRNNZooConfig, build_tiny_rnn_zoo, from_dict

Record: TypeAlias = dict[str, Any]
ROOT = Path(__file__).parents[1]
FORMAT = 1
NAME = "tiny_rnn_zoo"
PUBLISHED = {"unf": 0.8968, "statnn": 0.8839, "deep_set": 0.8306}
TITLES = {"unf": "UNF", "statnn": "StatNN", "deep_set": "Deep Set"}
MAKERS: dict[str, Callable[[SymmetrySpec, int], nn.Module]] = {
    "unf": lambda spec, width: UNF(spec, width),
    "statnn": lambda spec, width: StatNN(_shapes(spec), width),
    "deep_set": lambda spec, width: DeepSet(_shapes(spec), width),
}


@dataclass(frozen=True)
class Plan:
    """How much is measured.

    Attributes:
        zoo: Recipe of the networks.
        budget: Steps of the runs that count.
        tuning: Steps of the runs that choose settings.
        learning_rates: Learning rates to choose from.
        widths: Predictor -> widths to choose from.
        seeds: Runs that count, of each predictor.
    """

    zoo: TinyRNNZooConfig = field(default_factory=lambda: TinyRNNZooConfig(count=5000))
    budget: Budget = field(default_factory=lambda: Budget(steps=1000))
    tuning: Budget = field(default_factory=lambda: Budget(steps=250, checks=5))
    learning_rates: tuple[float, ...] = (0.003, 0.01)
    widths: dict[str, tuple[int, ...]] = field(
        default_factory=lambda: {
            "unf": (16, 32),
            "statnn": (128, 512),
            "deep_set": (8, 16),
        }
    )
    seeds: int = 3

    def identity(self, predictor: str) -> Record:
        """What a predictor's result depends on, as plain json values."""
        own = {key: value for key, value in asdict(self).items() if key not in ("zoo", "widths")}
        return json.loads(json.dumps(own | {"zoo": self.zoo.to_dict(), "widths": self.widths[predictor]}))


QUICK = Plan(
    zoo=TinyRNNZooConfig(count=600, steps=(50, 800), shard_size=200),
    budget=Budget(steps=100),
    tuning=Budget(steps=30, checks=2),
    learning_rates=(0.003,),
    seeds=2,
)


def measure(plan: Plan, predictor: str, zoo: Zoo, result: Record, save: Callable[[Record], None]) -> Record:
    """Choose a predictor's settings, train it with several seeds, score it, as far as that is not done yet.

    Args:
        plan: What to do.
        predictor: A key of ``MAKERS``.
        zoo: All networks.
        result: What was measured before, by the same plan; may be empty.
        save: Called with the result after every run.

    Returns:
        Settings, Kendall's tau on val and test networks per seed, and what it took, as the JSON file has it.
    """
    result = {"identity": plan.identity(predictor), "tried": [], "runs": []} | result
    settings = list(itertools.product(plan.learning_rates, plan.widths[predictor]))
    if len(result["tried"]) == len(settings) and len(result["runs"]) == plan.seeds:
        return result
    result["made_by"] = made_by()
    spec, parts = prepare(zoo)
    for rate, width in settings[len(result["tried"]) :]:
        run = _run(plan.tuning, predictor, spec, parts, rate, width, seed=1000)
        result["tried"].append({"learning_rate": rate, "width": width, "val_tau": run.val_tau})
        save(result)
        _say(f"{predictor}: tried {result['tried'][-1]}")
    result["chosen"] = chosen = max(result["tried"], key=lambda row: row["val_tau"])
    for seed in range(len(result["runs"]), plan.seeds):
        run = _run(plan.budget, predictor, spec, parts, chosen["learning_rate"], chosen["width"], seed=seed)
        logits = predict(run.model, parts["test"].params)
        row = {"seed": seed, "tau": tau(logits, parts["test"].target), "val_tau": run.val_tau}
        result["runs"].append(row | {"best_step": run.best_step, "cpu_seconds": round(run.cpu_seconds, 1)})
        result["tau"], result["interval"] = interval([row["tau"] for row in result["runs"]])
        result["parameters"] = sum(p.numel() for p in run.model.parameters())
        result.setdefault("predicted", [round(p, 4) for p in logits.sigmoid().tolist()])
        save(result)
        _say(f"{predictor}: {result['runs'][-1]}")
    return result


def prepare(zoo: Zoo) -> tuple[SymmetrySpec, dict[str, Data]]:
    """The networks' symmetry, and the blocks and success rates of each part of the zoo.

    Every block is divided by its root mean square over the train networks.
    """
    config = from_dict(zoo.config)
    example = config.arithmetic.test()[:4, :-1]
    with torch.random.fork_rng(devices=[]):
        spec = extract(config.build(), example)
    parts: dict[str, Data] = {}
    scales: dict[str, torch.Tensor] = {}
    for which in ("train", "val", "test"):
        chosen = zoo.select(which)
        blocks = blocks_of(spec, chosen.params)
        scales = scales or {label: value.square().mean().sqrt() for label, value in blocks.items()}
        scaled = {label: value / scales[label] for label, value in blocks.items()}
        parts[which] = Data(scaled, torch.as_tensor(chosen.table["success_rate"]).float())
    return spec, parts


def _shapes(spec: SymmetrySpec) -> dict[str, tuple[int, ...]]:
    return {block.label: block.shape for block in spec.blocks}


def _run(
    budget: Budget,
    predictor: str,
    spec: SymmetrySpec,
    parts: dict[str, Data],
    rate: float,
    width: int,
    *,
    seed: int,
) -> Trained:
    make = MAKERS[predictor]
    return train(
        lambda: make(spec, width), parts["train"], parts["val"], budget, learning_rate=rate, seed=seed
    )


def interval(values: list[float]) -> tuple[float, float]:
    """Mean, and half the width of its 95 % interval by Student's t; 0 for a single value."""
    count = len(values)
    if count < 2:
        return values[0], 0.0
    half = stats.t.ppf(0.975, count - 1) * np.std(values, ddof=1) / math.sqrt(count)
    return float(np.mean(values)), float(half)


def describe(zoo: Zoo) -> Record:
    """How the success rates spread, and what else than the weights orders the test networks."""
    test = zoo.select("test").table
    rates = zoo.table["success_rate"]
    columns = ("steps", "learning_rate", "init_scale", "train_size", "weight_decay", "train_loss")
    target = torch.as_tensor(test["success_rate"])
    return {
        "networks": {which: len(zoo.select(which)) for which in ("train", "val", "test")},
        "histogram": np.histogram(rates, 10, (0, 1))[0].tolist(),
        "quartiles": np.quantile(rates, (0.25, 0.5, 0.75)).round(3).tolist(),
        "tau_of": {name: tau(torch.as_tensor(test[name]).double(), target) for name in columns},
        "test_success_rates": target.tolist(),
    }


def _finished(results: Record) -> dict[str, Record]:
    """Predictors that were scored at least once."""
    return {name: row for name, row in results["predictors"].items() if row["runs"]}


def table(results: Record) -> str:
    """Markdown of a results file."""
    zoo = results["zoo"]
    counts, middle = zoo["networks"], zoo["quartiles"]
    lines = [
        "# Success rates of the Tiny RNN Zoo, predicted from the weights",
        "",
        f"{sum(counts.values())} GRUs that add {results['recipe']['problem']['terms']} numbers of "
        f"{results['recipe']['problem']['digits']} digit(s), {results['recipe']['family']['hidden']} units; "
        f"{counts['train']} to train on, {counts['val']} to choose by, {counts['test']} to test. Success "
        f"rates: quartiles {', '.join(map(str, middle))}; networks per tenth of [0, 1]: "
        f"{', '.join(map(str, zoo['histogram']))}.",
        "",
        "| predictor | Kendall τ, test (95 % over seeds) | seeds | published τ, other networks | parameters "
        "| learning rate, width | CPU seconds per run |",
        "|---|---:|---:|---:|---:|---|---:|",
    ]
    ranked = sorted(_finished(results).items(), key=lambda item: -item[1]["tau"])
    for name, row in ranked:
        seconds = np.mean([run["cpu_seconds"] for run in row["runs"]])
        spread = f" ± {row['interval']:.4f}" if len(row["runs"]) > 1 else ""
        lines.append(
            f"| {TITLES[name]} | {row['tau']:.4f}{spread} | {len(row['runs'])} | "
            f"{PUBLISHED[name]:.4f} | {row['parameters']} | {row['chosen']['learning_rate']}, "
            f"{row['chosen']['width']} | {seconds:.0f} |"
        )
    lines += ["", "For scale, τ between the success rate and what is not in the weights:", ""]
    lines += [f"- {name}: {value:.3f}" for name, value in zoo["tau_of"].items()]
    lines += ["", "Made by:", ""]
    for name, row in ranked:
        by, budget = row["made_by"], row["identity"]["budget"]
        lines.append(
            f"- {TITLES[name]}: commit {by['commit']}, torch {by['torch']}, {by['hardware']}, "
            f"{by['threads']} thread(s), {by['date']}; {budget['steps']} steps of {budget['batch']} "
            f"networks, settings chosen by {len(row['tried'])} runs of "
            f"{row['identity']['tuning']['steps']} steps"
        )
    return "\n".join(lines) + "\n"


def readme_block(results: Record) -> str:
    """What the README shows of a results file, between marks."""
    lines = ["<!-- tiny-rnn:begin -->", "| predictor | Kendall τ, test (95 % over seeds) |", "|---|---:|"]
    for name, row in sorted(_finished(results).items(), key=lambda item: -item[1]["tau"]):
        spread = f" ± {row['interval']:.3f}" if len(row["runs"]) > 1 else ""
        lines.append(f"| {TITLES[name]} | {row['tau']:.3f}{spread} |")
    counts = results["zoo"]["networks"]
    lines += ["", f"{counts['train']} networks to train on, {counts['test']} to test."]
    return "\n".join([*lines, "<!-- tiny-rnn:end -->"])


def picture(results: Record, path: Path) -> None:
    """Predicted against measured success rates, and how these spread."""
    finished = _finished(results)
    names = sorted(finished, key=lambda name: -finished[name]["tau"])
    figure, axes = plt.subplots(
        1, len(names) + 1, figsize=(3.2 * (len(names) + 1), 3.2), layout="constrained"
    )
    axes[0].bar(np.arange(10) / 10 + 0.05, results["zoo"]["histogram"], width=0.09, color="0.6")
    axes[0].set(xlabel="success rate", ylabel="networks", title="Tiny RNN Zoo")
    for axis, name in zip(axes[1:], names, strict=True):
        row = finished[name]
        axis.plot([0, 1], [0, 1], color="0.8", zorder=0)
        axis.scatter(results["zoo"]["test_success_rates"], row["predicted"], s=3, alpha=0.5, linewidths=0)
        axis.set(xlim=(0, 1), ylim=(0, 1), aspect="equal", xlabel="success rate")
        axis.set_title(f"{TITLES[name]}: τ = {row['tau']:.3f} ± {row['interval']:.3f}")
    axes[1].set_ylabel("predicted, unseen networks")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130, metadata={"Software": None})
    plt.close(figure)


def run(plan: Plan, predictors: list[str], folder: Path, zoo_folder: Path) -> Record:
    """Build the zoo, measure what is not measured yet; json after every run, table and picture at the end."""
    began = time.perf_counter()
    build_tiny_rnn_zoo(plan.zoo, zoo_folder, progress=True)
    zoo, path = load_zoo(zoo_folder), folder / f"{NAME}.json"
    _say(f"{zoo_folder}: {len(zoo)} networks after {time.perf_counter() - began:.0f} s")
    results: Record = json.loads(path.read_text()) if path.is_file() else {"predictors": {}}
    results |= {"format": FORMAT, "benchmark": NAME, "recipe": plan.zoo.to_dict(), "zoo": describe(zoo)}

    def save(name: str, result: Record) -> None:
        # Another process may have measured another predictor meanwhile.
        there = json.loads(path.read_text())["predictors"] if path.is_file() else {}
        results["predictors"] = results["predictors"] | there | {name: result}
        write_whole(path, (json.dumps(results, indent=1) + "\n").encode())

    for name in predictors:
        before = results["predictors"].get(name, {})
        same = before.get("identity") == plan.identity(name)
        save(name, measure(plan, name, zoo, before if same else {}, partial(save, name)))
    write_whole(folder / f"{NAME}.md", table(results).encode())
    picture(results, folder / f"{NAME}.png")
    return results


def made_by() -> Record:
    """Where and by what a result was made."""
    return {
        "commit": commit(),
        "amortopt": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "hardware": hardware(torch.device("cpu")),
        "threads": torch.get_num_threads(),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }


def _say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


def main(argv: list[str] | None = None) -> None:
    """Measure, print, write."""
    parser = ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few networks, few steps")
    parser.add_argument("--predictors", type=str, default=",".join(MAKERS), help="which, with commas between")
    parser.add_argument("--count", type=int, default=None, help="networks of the zoo")
    parser.add_argument("--threads", type=int, default=1, help="threads")
    parser.add_argument("--out", type=Path, default=None, help=f"folder for {NAME}.json, .md and .png")
    parser.add_argument("--zoo", type=Path, default=None, help="zoo folder; built if it is not there")
    parser.add_argument("--readme", action="store_true", help="write the table into the README too")
    options = parser.parse_args(argv)
    predictors = options.predictors.split(",")
    unknown = sorted(set(predictors) - set(MAKERS))
    if unknown:
        parser.error(f"--predictors: got {', '.join(unknown)}, expected some of {', '.join(MAKERS)}")
    torch.set_num_threads(options.threads)
    keep_freed_memory()
    quick = options.quick
    folder = options.out or ROOT / (f"runs/{NAME}_quick" if quick else "benchmarks/results")
    zoo_folder = options.zoo or ROOT / ("zoos/tiny_rnn_quick" if quick else "zoos/tiny_rnn")
    plan = QUICK if quick else Plan()
    if options.count is not None:
        plan = replace(plan, zoo=replace(plan.zoo, count=options.count))
    results = run(plan, predictors, folder, zoo_folder)
    if options.readme:
        rewrite_readme(ROOT / "README.md", readme_block(results))
    print(table(results))


if __name__ == "__main__":
    main()
