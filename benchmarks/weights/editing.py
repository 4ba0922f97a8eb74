"""Editing implicit representations: weights that show a digit become weights that show it dilated.

The networks are those of the zoo of one fit per image (see inr.py); the wanted values are the pixels of the
image after a dilation by a 3x3 square. The score is the mean squared error over pixels and test images, of
grey levels in [0, 1], times 100. With several proposals the answers of the networks that they make are
averaged, in training too.
"""

from __future__ import annotations

import copy
import time
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from amortopt._types import Params
from amortopt.functional.networks import apply_many
from amortopt.meta.functional.targets import edited
from amortopt.metanets import ScaleGMNEditor
from amortopt.symmetry import SymmetrySpec
from amortopt.zoo import Zoo
from benchmarks.harness.command import Part
from benchmarks.harness.store import Record, Store
from benchmarks.weights import inr
from benchmarks.weights.predictors import warmup_cosine

BENCHMARK = "inr_editing"
EDIT = "dilation"
EDITORS: dict[str, dict[str, Any]] = {
    "scalegmn_b": {},
    "scalegmn_b_8": {"proposals": 8},
    "scalegmn": {"direction": "forward"},
    "twin": {"respects": "permutation"},
}
SHOWN = 8
"""Test images whose pictures are kept."""


@dataclass(frozen=True)
class Plan:
    """How much is measured.

    Attributes:
        networks: Which networks, see inr.py.
        sweeps: Sweeps of the editors.
        steps: Training steps.
        batch: Networks per step.
        pixels: Pixels of the loss in a step.
        learning_rate: Highest learning rate.
        seeds: Runs of each editor.
        zoos: Which zoos.
    """

    networks: inr.Plan = field(default_factory=inr.Plan)
    sweeps: int = 2
    steps: int = 12000
    batch: int = 32
    pixels: int = 256
    learning_rate: float = 0.002
    seeds: int = 1
    zoos: tuple[str, ...] = ("independent",)


QUICK = Plan(networks=inr.QUICK, steps=20, batch=16, pixels=100)


@dataclass(frozen=True)
class Pictures:
    """Networks of one part, and what they should show.

    Attributes:
        params: [n, ...].
        wanted: Grey levels [n, N, 1].
        image: Number of the image of each network.
    """

    params: Params
    wanted: Tensor
    image: list[int]

    def __len__(self) -> int:
        return len(self.image)


class Editing:
    """The networks of a zoo, and editors of them."""

    def __init__(self, networks: inr.Networks, plan: Plan) -> None:
        self.networks, self.plan = networks, plan

    @cached_property
    def module(self) -> nn.Module:
        """Their architecture."""
        with torch.random.fork_rng(devices=[]):
            return self.networks.zoo.family.build()

    @cached_property
    def x(self) -> Tensor:
        """Coordinates of all pixels [N, 2]."""
        return edited(self.networks.zoo.select(torch.arange(1).numpy()), EDIT).x

    @cached_property
    def parts(self) -> dict[str, Pictures]:
        """Networks and dilated images; of val and test images the first view."""
        parts = {}
        for which in ("train", "val", "test"):
            zoo: Zoo = self.networks.zoo.select(which)
            if which != "train":
                zoo = zoo.select(zoo.table["view"] == 0)
            parts[which] = Pictures(zoo.params, edited(zoo, EDIT).y, zoo.table["image"].tolist())
        return parts

    @torch.no_grad()
    def unedited(self, advance: object = None) -> Record:
        """Error of the networks as they are, and of the dilated images of their own functions' pixels."""
        test = self.parts["test"]
        answers = apply_many(self.module, test.params, self.x)
        return {
            "networks": {which: len(part) for which, part in self.parts.items()},
            "mse_x100": 100 * (answers - test.wanted).square().mean().item(),
        }

    def train(self, editor: str, seed: int, on_step: Any) -> Record:
        """Train an editor and score it on the test networks."""
        plan, data = self.plan, self.parts["train"]
        began = time.process_time()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = make_editor(editor, self.networks.spec, plan)
            model.standardize(data.params)
            average = copy.deepcopy(model)
            adam = torch.optim.AdamW(model.parameters(), lr=plan.learning_rate, weight_decay=0.01)
            generator = torch.Generator().manual_seed(seed)
            order = torch.empty(0, dtype=torch.long)
            for step in range(plan.steps):
                if len(order) < plan.batch:
                    order = torch.randperm(len(data), generator=generator)
                rows, order = order[: plan.batch], order[plan.batch :]
                pixels = torch.randperm(len(self.x), generator=generator)[: plan.pixels]
                adam.param_groups[0]["lr"] = plan.learning_rate * warmup_cosine(step, plan.steps)
                params = {name: p[rows] for name, p in data.params.items()}
                loss = self.errors(model, params, data.wanted[rows][:, pixels], self.x[pixels]).mean()
                adam.zero_grad(set_to_none=True)
                loss.backward()
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                adam.step()
                with torch.no_grad():
                    for old, new in zip(average.parameters(), model.parameters(), strict=True):
                        old.lerp_(new, 1 - min(0.99, (step + 1) / (step + 10)))
                on_step(1)
        scores = {which: self.score(average, self.parts[which]) for which in ("val", "test")}
        result = {
            "mse_x100": scores["test"],
            "val_mse_x100": scores["val"],
            "cpu_seconds": round(time.process_time() - began, 1),
            "parameters": sum(p.numel() for p in model.parameters()),
        }
        return result if seed else result | {"pictures": self.pictures(average)}

    def errors(self, model: ScaleGMNEditor, params: Params, wanted: Tensor, x: Tensor) -> Tensor:
        """Squared error of each network [B], of the mean of its proposals' answers."""
        answers = torch.stack([apply_many(self.module, p, x) for p in model.propose(params)]).mean(0)
        return (answers - wanted).square().mean((1, 2))

    @torch.no_grad()
    def score(self, model: ScaleGMNEditor, part: Pictures, chunk: int = 64) -> float:
        """Mean squared error over pixels and networks, times 100."""
        errors = [
            self.errors(model, {k: p[i : i + chunk] for k, p in part.params.items()}, wanted, self.x)
            for i, wanted in zip(range(0, len(part), chunk), part.wanted.split(chunk), strict=True)
        ]
        return 100 * torch.cat(errors).mean().item()

    @torch.no_grad()
    def pictures(self, model: ScaleGMNEditor) -> Record:
        """Before, target and after of some test images, rows of 784 grey levels of two decimals."""
        test = self.parts["test"]
        rows = torch.linspace(0, len(test) - 1, SHOWN).long()
        params = {name: p[rows] for name, p in test.params.items()}
        after = torch.stack([apply_many(self.module, p, self.x) for p in model.propose(params)]).mean(0)
        before = apply_many(self.module, params, self.x)
        shown = {"before": before, "target": test.wanted[rows], "after": after}
        return {k: [[round(v, 2) for v in row] for row in y[..., 0].tolist()] for k, y in shown.items()}


def make_editor(editor: str, spec: SymmetrySpec, plan: Plan) -> ScaleGMNEditor:
    """An untrained editor."""
    return ScaleGMNEditor(spec, sweeps=plan.sweeps, **EDITORS[editor])


def all_parts(plan: Plan, zoos: Path, editors: list[str], store: Store) -> list[Part]:
    """The networks as they are, and every editor."""
    parts: list[Part] = []
    for name in plan.zoos:
        networks = inr.Networks(name, plan.networks, zoos)
        editing = Editing(networks, plan)
        identity = {"zoo": networks.recipe, "edit": EDIT}
        parts.append(Part(f"{name}/unedited", identity, editing.unedited))
        settings = {"steps": plan.steps, "batch": plan.batch, "pixels": plan.pixels}
        settings |= {"learning_rate": plan.learning_rate, "sweeps": plan.sweeps}
        for editor in editors:
            for seed in range(plan.seeds):
                parts.append(
                    Part(
                        f"{name}/{editor}/run/{seed}",
                        identity | settings | {"editor": EDITORS[editor], "seed": seed},
                        partial(editing.train, editor, seed),
                        plan.steps * EDITORS[editor].get("proposals", 1),
                    )
                )
    return parts
