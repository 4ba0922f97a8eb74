"""One forward pass against tuned SGD and Adam, on networks and data that neither has seen.

    python benchmarks/one_pass.py              # the shipped checkpoints -> benchmarks/results
    python benchmarks/one_pass.py --quick      # the same with little of everything -> runs/one_pass_quick
    python benchmarks/one_pass.py --checkpoint FOLDER_OR_NAME --out FOLDER
    python benchmarks/one_pass.py --long       # also 500 epochs
    python benchmarks/one_pass.py --readme     # measures nothing: table, picture, README from the JSON files

Starting networks are drawn and trained a little as the recipes in recipes/zoo say, with seeds of their own.
Learning rate and schedule of every baseline row are chosen on other networks, also with seeds of their own,
by validation data. Test data are used once, for the numbers. Times are for all networks at once, divided by
their number.
"""

from __future__ import annotations

import datetime
import json
import os
import platform
import sys
import time
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import one_pass_report as report
import torch
from jsonargparse import ArgumentParser
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from torch import Tensor

from amortopt import ScaleGMNOptimizer, list_shipped, load_release
from amortopt._types import Params
from amortopt._version import __version__
from amortopt.demo import CHECKPOINTS, NOISE, one_pass
from amortopt.files import write_whole
from amortopt.functional import num_networks
from amortopt.meta.release import commit, hardware
from amortopt.tasks import Family, Split, Task
from amortopt.zoo.baseline import START_EPOCHS, OptimizerName, Schedule, finetune, starting_networks
from amortopt.zoo.train import evaluate_many

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"


@dataclass(frozen=True)
class Plan:
    """How much is measured.

    Attributes:
        networks: Networks that the numbers are for.
        tuning_networks: Networks that learning rate and schedule are chosen on.
        epochs: Lengths of fine-tuning.
        sgd: Learning rates of SGD (momentum 0.9) to choose from.
        adam: Learning rates of Adam to choose from.
        latency: Batch sizes to time one pass at.
        repeats: Timed calls per batch size.
        seed: Seed of the networks; those for tuning have the next one.
        order_seed: Seed of the order of examples and of the noise in fine-tuning.
        batch_size: Examples per step.
    """

    networks: int = 64
    tuning_networks: int = 16
    epochs: tuple[int, ...] = (25, 50, 150)
    sgd: tuple[float, ...] = (0.01, 0.02, 0.05, 0.1, 0.2, 0.4, 0.8)
    adam: tuple[float, ...] = (0.001, 0.002, 0.005, 0.01, 0.02, 0.04)
    latency: tuple[int, ...] = (1, 8, 64)
    repeats: int = 20
    seed: int = 640_001
    order_seed: int = 17
    batch_size: int = 128


QUICK = Plan(
    networks=16, tuning_networks=4, epochs=(25, 50), sgd=(0.05, 0.1, 0.2), adam=(0.005, 0.01, 0.02), repeats=5
)


@dataclass(frozen=True)
class Setting:
    """How a baseline trains."""

    optimizer: OptimizerName
    noise: float
    schedule: Schedule
    epochs: int
    learning_rate: float = 0.0


class Benchmark:
    """Everything about one checkpoint."""

    def __init__(self, checkpoint: str, plan: Plan) -> None:
        self.plan = plan
        self.release = load_release(checkpoint)
        self.opt = ScaleGMNOptimizer.from_pretrained(checkpoint)
        if self.opt.task is None or self.opt.family is None:
            raise ValueError(f"checkpoint: {checkpoint} names no task or no family to make networks for")
        self.task: Task = self.opt.task
        self.family: Family = self.opt.family
        self.module = self.family.build()
        self.data: dict[str, Split] = {which: self.task.split(which) for which in ("train", "val", "test")}

    @property
    def label(self) -> str:
        return f"{self.task.name}_{self.family.name}_{self.family.activation}"

    def run(self) -> dict[str, Any]:
        """Measure everything; plain json values."""
        began, plan = time.perf_counter(), self.plan
        with Progress(
            TextColumn(self.label + " {task.description}"), BarColumn(), TimeElapsedColumn()
        ) as self.bar:
            # Of the work: an epoch of one network.
            grid = len(plan.sgd) + len(plan.adam)
            tuning = 2 * grid * plan.tuning_networks * (max(plan.epochs) + sum(plan.epochs))
            self.job = self.bar.add_task(
                "networks", total=tuning + 4 * sum(plan.epochs) * plan.networks, start=True
            )
            start = self._networks(plan.networks, plan.seed)
            rows = [self._row("start", start, None)]
            self.bar.update(self.job, description="one pass")
            better, _ = one_pass(self.opt, start, repeats=1)
            latency = self._latency(start)
            rows.append(self._row("one_pass", better, latency[-1]["seconds_per_network"]))
            tuned = self._tune()
            rows += [self._baseline(start, setting) for setting in self._chosen(tuned)]
            alone = {name: self._alone(start, name) for name in ("sgd", "adam")}
        return self._described(rows, tuned, latency, alone, time.perf_counter() - began)

    def _networks(self, count: int, seed: int) -> Params:
        return starting_networks(self.task.to_config(), self.family.to_config(), count=count, seed=seed)

    def _measure(self, params: Params, which: str) -> tuple[Tensor, Tensor]:
        return evaluate_many(self.module, params, self.data[which], self.task)

    def _row(self, method: str, params: Params, seconds: float | None, **setting: Any) -> dict[str, Any]:
        loss, accuracy = self._measure(params, "test")
        return {
            "method": method,
            **setting,
            "accuracy": report.summary((100 * accuracy).tolist()),
            "loss": report.summary(loss.tolist()),
            "seconds_per_network": seconds,
        }

    def _latency(self, start: Params) -> list[dict[str, Any]]:
        rows = []
        for batch in self.plan.latency:
            # Of few networks, more than there are: the same ones again.
            some = {
                name: p.repeat(-(-batch // len(p)), *[1] * (p.ndim - 1))[:batch] for name, p in start.items()
            }
            _, seconds = one_pass(self.opt, some, repeats=self.plan.repeats)
            rows.append({"batch": batch, "seconds": seconds, "seconds_per_network": seconds / batch})
        return rows

    def _tune(self) -> list[dict[str, Any]]:
        """Validation accuracy of every setting, mean over the tuning networks."""
        start, table = self._networks(self.plan.tuning_networks, self.plan.seed + 1), []
        kinds = product(("sgd", "adam"), (0.0, NOISE), ("constant", "cosine"))
        for optimizer, noise, schedule in kinds:
            # A constant rate passes the shorter lengths on its way to the longest one.
            lengths = [max(self.plan.epochs)] if schedule == "constant" else self.plan.epochs
            for epochs in lengths:
                table += self._tune_one(start, Setting(optimizer, noise, schedule, epochs))
        return table

    def _tune_one(self, start: Params, setting: Setting) -> list[dict[str, Any]]:
        rates = getattr(self.plan, setting.optimizer)
        count, table = num_networks(start), []

        def look(epochs: int, _: float, params: Params) -> None:
            loss, accuracy = (values.view(len(rates), count) for values in self._measure(params, "val"))
            for rate, mean, losses in zip(rates, 100 * accuracy.mean(1), loss.mean(1), strict=True):
                done = asdict(replace(setting, epochs=epochs, learning_rate=rate))
                table.append(
                    done | {"val_accuracy": round(float(mean), 3), "val_loss": report.finite(float(losses))}
                )

        repeated = {name: p.repeat(len(rates), *[1] * (p.ndim - 1)) for name, p in start.items()}
        stops = self.plan.epochs if setting.schedule == "constant" else (setting.epochs,)
        self._train(repeated, setting, torch.tensor(rates).repeat_interleave(count), "tuning", stops, look)
        return table

    def _chosen(self, tuned: list[dict[str, Any]]) -> list[Setting]:
        """The best setting by validation accuracy for every optimizer, noise and length."""
        chosen = []
        for noise, optimizer, epochs in product((0.0, NOISE), ("sgd", "adam"), self.plan.epochs):
            wanted = {"noise": noise, "optimizer": optimizer, "epochs": epochs}
            best = max((t for t in tuned if wanted.items() <= t.items()), key=lambda t: t["val_accuracy"])
            chosen.append(Setting(**{key: best[key] for key in Setting.__dataclass_fields__}))
        return chosen

    def _baseline(self, start: Params, setting: Setting) -> dict[str, Any]:
        done = self._train(start, setting, setting.learning_rate, "baselines")
        described = {key: value for key, value in asdict(setting).items() if key != "optimizer"}
        return self._row(setting.optimizer, done.params, done.seconds / num_networks(start), **described)

    def _alone(self, start: Params, optimizer: OptimizerName) -> float:
        """Seconds per epoch when a network is trained by itself."""
        one = {name: p[:1] for name, p in start.items()}
        setting = Setting(optimizer, 0.0, "cosine", 1)
        return median(self._train(one, setting, 0.01, "alone").seconds for _ in range(5))

    def _train(
        self,
        params: Params,
        setting: Setting,
        rate: float | Tensor,
        what: str,
        stops: tuple[int, ...] = (),
        look: Any = None,
    ) -> Any:
        kind = (
            f"{what}: {setting.optimizer}, noise {setting.noise}, {setting.schedule}, {setting.epochs} epochs"
        )
        self.bar.update(self.job, description=kind)
        return finetune(
            self.module, params, self.data["train"], self.task,
            optimizer=setting.optimizer, learning_rate=rate, schedule=setting.schedule, epochs=setting.epochs,
            seed=self.plan.order_seed, batch_size=self.plan.batch_size, input_noise=setting.noise,
            stops=stops, on_stop=look, on_epoch=lambda _: self.bar.advance(self.job, num_networks(params)),
        )  # fmt: skip

    def _described(self, rows: Any, tuned: Any, latency: Any, alone: Any, seconds: float) -> dict[str, Any]:
        release = self.release
        return {
            "format": report.FORMAT,
            "benchmark": "one_pass",
            "label": self.label,
            "quick": self.plan.networks < Plan.networks,
            "task": self.task.to_config(),
            "family": self.family.to_config(),
            "checkpoint": {
                "name": release.name,
                "sha256": release.sha256,
                "commit": release.commit,
                "seeds": release.seeds,
                "parameters": sum(p.numel() for p in self.opt.metanet.parameters()),
            },
            "plan": asdict(self.plan) | {"start_epochs": START_EPOCHS, "noise": NOISE},
            "rows": rows,
            "latency": latency,
            "seconds_per_epoch_alone": alone,
            "tuning": tuned,
            "seconds": round(seconds, 1),
            "commit": commit(),
            "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
            "hardware": hardware(torch.device("cpu")),
            "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
            "versions": {
                "amortopt": __version__,
                "torch": str(torch.__version__),
                "numpy": np.__version__,
                "python": platform.python_version(),
            },
        }


def main(args: list[str] | None = None) -> None:
    """Run the command line."""
    parser = ArgumentParser(description=__doc__.partition("\n")[0], exit_on_error=True)
    parser.add_argument("--checkpoint", type=str | None, help="One checkpoint instead of the shipped ones.")
    parser.add_argument("--out", type=Path | None, help="Folder for the results.")
    parser.add_argument("--quick", action="store_true", help="Little of everything, in under three minutes.")
    parser.add_argument("--long", action="store_true", help="Also 500 epochs.")
    parser.add_argument("--readme", action="store_true", help="Only make table, picture and README anew.")
    given = parser.parse_args(args)
    out = given.out or (ROOT / "runs" / "one_pass_quick" if given.quick else RESULTS)
    if not given.readme:
        plan = QUICK if given.quick else Plan()
        plan = replace(plan, epochs=(*plan.epochs, 500)) if given.long else plan
        names = [given.checkpoint] if given.checkpoint else [n for n in CHECKPOINTS if n in list_shipped()]
        if not names:
            sys.exit(f"error: none of {', '.join(CHECKPOINTS)} is here; pass --checkpoint")
        for name in names:
            results = Benchmark(name, plan).run()
            text = json.dumps(results, indent=1, allow_nan=False) + "\n"
            write_whole(out / f"one_pass_{results['label']}.json", text.encode())
    everything = report.read_results(out)
    write_whole(out / "one_pass.md", report.markdown(everything).encode())
    write_whole(out / "one_pass.png", report.picture(everything))
    print(report.markdown(everything))
    if given.readme:
        report.rewrite_readme(ROOT / "README.md", everything)


if __name__ == "__main__":
    main()
