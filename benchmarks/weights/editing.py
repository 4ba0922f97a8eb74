"""Editing implicit representations: weights that show a digit become weights that show it dilated.

The networks are those of the zoo of one fit per image (see inr.py); the wanted values are the pixels of the
image after a dilation by a 3x3 square. The score is the mean squared error over pixels and test images, of
grey levels in [0, 1], times 100: the scale of the published errors. With several proposals the answers of
the networks that they make are averaged, in training too.

Two kinds of editors: those that change the given weights and see nothing else, by sweeps, or by messages that
begin as the network's own pass and backpropagation; and one that runs the networks on a grid, edits the
picture and draws it anew by a pass of four gradients. Controls of the latter know the edit: Adam, from the
given weights, towards the dilation of what the network shows.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from amortopt._types import Params
from amortopt.functional.networks import apply_many
from amortopt.meta.functional.editing import edited_answers, editing_loss
from amortopt.meta.functional.optimizer import reader_optimizer
from amortopt.meta.functional.targets import dilate, edited
from amortopt.meta.schedule import update_average
from amortopt.metanets import PictureEditor, ScaleGMNDescent, ScaleGMNEditor
from amortopt.tasks.problem_families.images import pixel_coordinates
from amortopt.zoo import Zoo
from benchmarks.harness.command import Part
from benchmarks.harness.store import Record, Store
from benchmarks.weights import inr
from benchmarks.weights.predictors import warmup_cosine

BENCHMARK = "inr_editing"
EDIT = "dilation"
WEIGHTS: dict[str, dict[str, Any]] = {
    "scalegmn_b": {},
    "scalegmn_b_8": {"proposals": 8},
    "scalegmn": {"direction": "forward"},
    "twin": {"respects": "permutation"},
}
"""Editors of weights by sweeps: how they differ."""
DESCENT: dict[str, dict[str, Any]] = {"descent": {}, "descent_8": {"proposals": 8}}
"""Editors of weights that begin as the network's own pass and backpropagation."""
PICTURE = "picture"
"""The editor that runs networks."""
ADAM = {f"adam_{steps}": steps for steps in (10, 100)}
"""Controls that run networks and know the edit, with their steps."""
EDITORS = (*WEIGHTS, *DESCENT, PICTURE, *ADAM)
ADAM_RATES = (0.0003, 0.001, 0.003)
SIDE = 28
SHOWN = 8
"""Test images whose pictures are kept."""


@dataclass(frozen=True)
class Plan:
    """How much is measured.

    Attributes:
        networks: Which networks, see inr.py.
        sweeps: Sweeps of the editors of weights.
        steps: Their training steps.
        descent_steps: Training steps of the editors that begin as descent.
        picture_steps: Training steps of the editor of pictures.
        batch: Networks per step.
        pixels: Pixels of the loss in a step; the editor of pictures sees all.
        learning_rate: Highest learning rate of AdamW.
        descent_rate: That of the editors that begin as descent.
        matrix_rate: Highest rate of Muon, for the maps of the editor of pictures.
        seeds: Runs of each editor.
        zoos: Which zoos.
    """

    networks: inr.Plan = field(default_factory=inr.Plan)
    sweeps: int = 2
    steps: int = 6000
    descent_steps: int = 4000
    picture_steps: int = 800
    batch: int = 32
    pixels: int = 256
    learning_rate: float = 0.002
    descent_rate: float = 0.005
    matrix_rate: float = 0.02
    seeds: int = 1
    zoos: tuple[str, ...] = ("independent",)


QUICK = Plan(networks=inr.QUICK, steps=20, descent_steps=20, picture_steps=10, batch=16, pixels=100)


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

    @property
    def x(self) -> Tensor:
        """Coordinates of all pixels [N, 2]."""
        return pixel_coordinates(SIDE)

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

    def settings(self, editor: str) -> Record:
        """What a run depends on beside its seed."""
        plan = self.plan
        shared = {"batch": plan.batch, "learning_rate": plan.learning_rate}
        if editor == PICTURE:
            config = {"steps": plan.picture_steps, "pixels": SIDE**2, "matrix_rate": plan.matrix_rate}
            return shared | config | {"editor": {"name": "picture_editor"}}
        if editor in DESCENT:
            config = {"steps": plan.descent_steps, "learning_rate": plan.descent_rate, "pixels": plan.pixels}
            return shared | config | {"editor": {"name": "scalegmn_descent"} | DESCENT[editor]}
        return shared | {
            "steps": plan.steps,
            "pixels": plan.pixels,
            "sweeps": plan.sweeps,
            "editor": WEIGHTS[editor],
        }

    def make(self, editor: str) -> PictureEditor | ScaleGMNDescent | ScaleGMNEditor:
        """An untrained editor."""
        spec = self.networks.spec
        if editor == PICTURE:
            return PictureEditor(spec, family=self.networks.zoo.family.to_config())
        if editor in DESCENT:
            return ScaleGMNDescent(spec, **DESCENT[editor])
        return ScaleGMNEditor(spec, sweeps=self.plan.sweeps, **WEIGHTS[editor])

    def train(self, editor: str, seed: int, on_step: Any) -> Record:
        """Train an editor and score it on the test networks."""
        plan, data, settings = self.plan, self.parts["train"], self.settings(editor)
        steps, x = settings["steps"], self.x
        began = time.process_time()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = self.make(editor)
            model.standardize(data.params)
            average = copy.deepcopy(model)
            optimizer = reader_optimizer(
                model, lr=settings["learning_rate"], matrix_lr=plan.matrix_rate, weight_decay=0.01
            )
            generator = torch.Generator().manual_seed(seed)
            order = torch.empty(0, dtype=torch.long)
            for step in range(steps):
                if len(order) < plan.batch:
                    order = torch.randperm(len(data), generator=generator)
                rows, order = order[: plan.batch], order[plan.batch :]
                pixels = torch.randperm(len(x), generator=generator)[: settings["pixels"]].sort().values
                for group in optimizer.param_groups:
                    group["lr"] = group["rate"] * warmup_cosine(step, steps)
                params = {name: p[rows] for name, p in data.params.items()}
                loss = editing_loss(model, self.module, params, x[pixels], data.wanted[rows][:, pixels])
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                update_average(average, model, step, 0.99)
                on_step(1)
        answers = partial(edited_answers, average, self.module, x=x)
        result = {
            "mse_x100": self.score(answers, self.parts["test"]),
            "val_mse_x100": self.score(answers, self.parts["val"]),
            "cpu_seconds": round(time.process_time() - began, 1),
            "ms_per_network": self.milliseconds(answers),
            "parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        }
        return result if seed else result | {"pictures": self.pictures(answers)}

    def adam(self, steps: int, on_step: Any) -> Record:
        """Adam from the given weights towards the dilation of what each network shows, at its best rate."""

        def fitted(params: Params, rate: float) -> Tensor:
            with torch.enable_grad():
                shown = apply_many(self.module, params, self.x)
                wanted = dilate(shown.detach().view(-1, SIDE, SIDE)).flatten(1)[..., None]
                at = {name: p.clone().requires_grad_() for name, p in params.items()}
                adam = torch.optim.Adam(list(at.values()), lr=rate, betas=(0.9, 0.99))
                for step in range(steps):
                    adam.param_groups[0]["lr"] = rate * warmup_cosine(step, steps)
                    errors = (apply_many(self.module, at, self.x) - wanted).square().mean((1, 2))
                    adam.zero_grad()
                    errors.sum().backward()  # Adam treats every network as if it were alone
                    adam.step()
            return apply_many(self.module, {name: p.detach() for name, p in at.items()}, self.x)

        tried = {}
        for rate in ADAM_RATES:
            tried[rate] = self.score(partial(fitted, rate=rate), self.parts["val"])
            on_step(steps)
        best = min(tried, key=lambda rate: tried[rate])
        answers = partial(fitted, rate=best)
        return {
            "mse_x100": self.score(answers, self.parts["test"]),
            "val_mse_x100": tried[best],
            "learning_rate": best,
            "ms_per_network": self.milliseconds(answers),
            "pictures": self.pictures(answers),
        }

    @torch.no_grad()
    def score(self, answers: Callable[[Params], Tensor], part: Pictures, chunk: int = 64) -> float:
        """Mean squared error over pixels and networks, times 100, of answers [B, N, 1] of edited networks."""
        errors = [
            (answers({k: p[i : i + chunk] for k, p in part.params.items()}) - wanted).square().mean((1, 2))
            for i, wanted in zip(range(0, len(part), chunk), part.wanted.split(chunk), strict=True)
        ]
        return 100 * torch.cat(errors).mean().item()

    @torch.no_grad()
    def milliseconds(self, answers: Callable[[Params], Tensor]) -> float:
        """CPU time to edit a network and run it at all pixels, of 64 at once."""
        some = {name: p[:64] for name, p in self.parts["test"].params.items()}
        began = time.process_time()
        answers(some)
        return round(1000 * (time.process_time() - began) / len(next(iter(some.values()))), 2)

    @torch.no_grad()
    def pictures(self, answers: Callable[[Params], Tensor]) -> Record:
        """Before, target and after of some test images, rows of 784 grey levels of two decimals."""
        test = self.parts["test"]
        rows = torch.linspace(0, len(test) - 1, SHOWN).long()
        params = {name: p[rows] for name, p in test.params.items()}
        before = apply_many(self.module, params, self.x)
        shown = {"before": before, "target": test.wanted[rows], "after": answers(params)}
        return {k: [[round(v, 2) for v in row] for row in y[..., 0].tolist()] for k, y in shown.items()}


def all_parts(plan: Plan, zoos: Path, editors: list[str], store: Store) -> list[Part]:
    """The networks as they are, and every editor."""
    parts: list[Part] = []
    for name in plan.zoos:
        networks = inr.Networks(name, plan.networks, zoos)
        editing = Editing(networks, plan)
        zoo = {"zoo": networks.recipe, "edit": EDIT}
        parts.append(Part(f"{name}/unedited", zoo, editing.unedited))
        for editor in editors:
            if editor in ADAM:
                identity = zoo | {"steps": ADAM[editor], "learning_rates": ADAM_RATES}
                work = partial(editing.adam, ADAM[editor])
                parts.append(Part(f"{name}/{editor}/run/0", identity, work, len(ADAM_RATES) * ADAM[editor]))
                continue
            for seed in range(plan.seeds):
                identity = zoo | editing.settings(editor) | {"seed": seed}
                work = partial(editing.train, editor, seed)
                parts.append(Part(f"{name}/{editor}/run/{seed}", identity, work, identity["steps"]))
    return parts
