"""Meta-training of an update rule as a LightningModule."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping
from itertools import repeat
from typing import Any, TypeAlias

import lightning.pytorch as L
import torch
from torch import Tensor, nn

from amortopt.meta.one_pass.module import MOST_SKIPPED
from amortopt.meta.rule import problems as problems
from amortopt.meta.rule.inner import InnerProblem, validate
from amortopt.meta.rule.pes import PersistentES
from amortopt.meta.rule.runs import Draws, InnerRuns, horizon_at
from amortopt.meta.rule.truncated import Estimate, TruncatedBackprop
from amortopt.meta.rule.whole import WholeTrainings
from amortopt.meta.schedule import budget_used, rate_factor, update_average
from amortopt.metanets.update_rule.rule import UNFRule
from amortopt.system.registry import construct
from amortopt.zoo.config import differing_keys

Estimator: TypeAlias = TruncatedBackprop | PersistentES | WholeTrainings
ESTIMATORS: dict[str, type[Estimator]] = {
    "truncated": TruncatedBackprop,
    "pes": PersistentES,
    "whole": WholeTrainings,
}


class UpdateRuleModule(L.LightningModule):
    r"""Trains an update rule to lower the training losses of the networks that it trains.

    A meta step takes one problem in turn, or all of them, advances its inner runs by a truncation (with the
    estimator ``"whole"``: to their end), and descends on the estimator's gradient with Adam. A problem whose
    gradient is not finite is left out of the step.

    Args:
        rule: Arguments of [UNFRule][amortopt.metanets.UNFRule].
        inner: One entry per inner problem: ``problem`` and ``family``, each with a ``name`` and
            arguments; ``batch``, the examples per inner step; ``networks``, how many are trained at a time.
        estimator: ``name`` (``"truncated"``, ``"pes"`` or ``"whole"``) and the arguments of
            [TruncatedBackprop][amortopt.meta.rule.truncated.TruncatedBackprop],
            [PersistentES][amortopt.meta.rule.pes.PersistentES] or
            [WholeTrainings][amortopt.meta.rule.whole.WholeTrainings].
        horizon: Inner steps of a run.
        first_horizon: Inner steps of a run at the beginning; by default ``horizon``.
        growth: Share of the budget in which the horizon grows.
        shortest: Runs end after so many inner steps to the horizon, log-uniformly; by default all at the
            horizon.
        draws: Arguments of [Draws][amortopt.meta.rule.runs.Draws]: learning rates, schedules and
            reparametrisations of the runs.
        together: Whether a meta step is about all inner problems; otherwise they take turns.
        balance: Whether the gradient of every problem is divided by its running root mean square norm.
        clip: Largest norm of the gradient of a problem, after balancing; 0 for no bound.
        lr: Learning rate of Adam.
        betas: Decays of its averages.
        warmup_steps: Meta steps in which the learning rate rises.
        hold: Share of the budget (steps or time) at the full learning rate; it falls linearly to 0 after it.
        ema: Decay of the average of the rule's weights, which is what is validated and released.
        val_networks: Networks per problem, of unseen initialisations, that a validation trains.
        val_horizon: Inner steps for which it does; by default ``horizon``.
        val_lr: Learning rate at the start of those; it falls as a cosine.
        compile: Whether to compile the rule with ``torch.compile``, once per inner problem, for the estimator
            ``"truncated"``: some minutes each on a CPU, for faster steps.

    Attributes:
        rule: The rule that is trained.
        average: Its average over meta steps.
        skipped: Gradients of problems that were left out because they were not finite.
        inner: The inner problems.

    Raises:
        ValueError: An argument is out of its range.
    """

    def __init__(
        self,
        rule: dict[str, Any],
        inner: list[dict[str, Any]],
        *,
        estimator: dict[str, Any] | None = None,
        horizon: int = 500,
        first_horizon: int | None = None,
        growth: float = 0.5,
        shortest: int | None = None,
        draws: dict[str, Any] | None = None,
        together: bool = False,
        balance: bool = True,
        clip: float = 1.0,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.99),
        warmup_steps: int = 50,
        hold: float = 0.5,
        ema: float = 0.99,
        val_networks: int = 2,
        val_horizon: int | None = None,
        val_lr: float = 0.02,
        compile: bool = False,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.automatic_optimization = False
        _check(self.hparams)
        self.seed = torch.initial_seed()
        self.rule: UNFRule = construct(UNFRule, "rule", dict(rule))
        self.average = copy.deepcopy(self.rule).requires_grad_(False)
        options = dict(estimator or {"name": "truncated"})
        name = options.pop("name", None)
        if not isinstance(name, str) or name not in ESTIMATORS:
            raise ValueError(f"estimator.name: got {name!r}, expected one of {', '.join(ESTIMATORS)}")
        self.estimator: Estimator = construct(ESTIMATORS[name], f"estimator {name!r}", options)
        self.draws: Draws = construct(Draws, "draws", dict(draws or {}))
        if not inner:
            raise ValueError(
                "inner: got no problem, expected at least one; add an entry with problem and family"
            )
        self.inner = [InnerProblem.from_config(entry, f"inner[{k}]") for k, entry in enumerate(inner)]
        self.networks = [int(entry.get("networks", 4)) for entry in inner]
        # Such as mnist1d_mlp; numbered if several are the same.
        names = [f"{one.problem.name}_{one.family.name}" for one in self.inner]
        self.names = [
            name if names.count(name) == 1 else f"{name}_{names[:k].count(name) + 1}"
            for k, name in enumerate(names)
        ]
        self.sizes: Tensor
        self.register_buffer("sizes", torch.zeros(len(inner), 2))  # of gradients: mean square norm, steps
        if compile and not isinstance(self.estimator, TruncatedBackprop):
            raise ValueError(f"compile: got true, expected false for the estimator {name!r}, which cannot be")
        # In a tuple, because it is no further module.
        self._stepped: tuple[Any] = (torch.compile(self.rule, dynamic=False) if compile else self.rule,)
        self.skipped = 0
        self._skipped_in_a_row = 0
        self._runs: list[InnerRuns] | None = None
        self._saved: list[dict[str, Any]] | None = None
        self._seen: dict[str, list[Tensor]] = {}

    @property
    def reported(self) -> tuple[str, ...]:
        """Names of what the console shows after a validation."""
        return tuple(f"val_{what}/{name}" for name in self.names for what in ("loss", "final"))

    @property
    def runs(self) -> list[InnerRuns]:
        """Inner runs of every problem; made when first asked for."""
        if self._runs is None:
            self._runs = [
                InnerRuns(
                    inner,
                    self.rule,
                    networks,
                    self.horizon(),
                    self.seed + 1000 + k,
                    copies=self.estimator.copies,
                    shortest=self.hparams["shortest"],
                    draws=self.draws,
                )
                for k, (inner, networks) in enumerate(zip(self.inner, self.networks, strict=True))
            ]
        return self._runs

    def horizon(self) -> int:
        """Inner steps of runs that start now."""
        last = self.hparams["horizon"]
        return horizon_at(
            self.progress(),
            first=self.hparams["first_horizon"] or last,
            last=last,
            share=self.hparams["growth"],
            truncation=self.estimator.truncation,
        )

    def progress(self) -> float:
        """Share of the budget that is used up, in [0, 1]."""
        return budget_used(self.trainer)

    def configure_optimizers(self) -> torch.optim.Adam:
        """Adam, for all parameters of the rule."""
        return torch.optim.Adam(self.rule.parameters(), lr=self.hparams["lr"], betas=self.hparams["betas"])

    def train_dataloader(self) -> Iterator[int]:
        """Endless zeros: inner runs draw their data themselves."""
        return repeat(0)

    def val_dataloader(self) -> range:
        """One item per inner problem."""
        return range(len(self.inner))

    def on_fit_start(self) -> None:
        """Move data to the device, and restore inner runs.

        Raises:
            ValueError: There are several processes.
        """
        if self.trainer.world_size > 1:
            raise ValueError(
                f"trainer.devices: got {self.trainer.world_size}, expected 1; raise networks instead"
            )
        for inner in self.inner:
            inner.to(self.device)
        if self._saved is not None:
            for runs, saved in zip(self.runs, self._saved, strict=True):
                runs.load_state_dict(saved)
            self._saved = None

    def training_step(self, batch: Any, batch_idx: int) -> None:
        """One meta step."""
        step = self.global_step
        chosen = range(len(self.inner)) if self.hparams["together"] else [step % len(self.inner)]
        optimizer: Any = self.optimizers()
        optimizer.zero_grad(set_to_none=True)
        horizon = self.horizon()
        used = 0
        for k in chosen:
            estimate = self.estimator(self._stepped[0], self.runs[k], horizon)
            self._seen.setdefault(self.names[k], []).append(estimate.loss)
            used += self._add(k, estimate)
        self._skipped_in_a_row = 0 if used else self._skipped_in_a_row + 1
        if self._skipped_in_a_row >= MOST_SKIPPED:
            raise ValueError(
                f"the gradients were not finite in {MOST_SKIPPED} steps in a row, up to step "
                f"{self.global_step + 1}; lower lr or the truncation, and start anew or resume from an "
                "earlier state"
            )
        for p in self.rule.parameters():
            if p.grad is not None:
                p.grad /= used
        factor = rate_factor(
            step, self.progress(), warmup_steps=self.hparams["warmup_steps"], hold=self.hparams["hold"]
        )
        for group in optimizer.param_groups:
            group["lr"] = self.hparams["lr"] * factor
        optimizer.step()
        update_average(self.average, self.rule, self.global_step, self.hparams["ema"])
        if (step + 1) % self.trainer.log_every_n_steps == 0:  # pyright: ignore[reportAttributeAccessIssue]
            means = {name: torch.stack(seen).mean() for name, seen in self._seen.items()}
            for name, mean in means.items():
                self.log(f"train_loss/{name}", mean)
            if means:
                self.log("train_loss", torch.stack(list(means.values())).mean())
            self.log("rate", factor)
            self.log("horizon", float(horizon))
            self.log("skipped_steps", float(self.skipped))
            self.log("diverged", float(sum(runs.diverged for runs in self.runs)))
            self._seen = {}

    def _add(self, k: int, estimate: Estimate) -> int:
        """Add the gradient of a problem to the step's; returns how many were added."""
        norm = nn.utils.get_total_norm(estimate.grads)
        if not bool(norm.isfinite()):
            self.skipped += 1
            return 0
        factor = 1.0
        if self.hparams["balance"]:
            mean, count = self.sizes[k].tolist()
            count += 1
            mean += (float(norm) ** 2 - mean) / min(count, 100.0)
            self.sizes[k] = torch.tensor([mean, count])
            factor = 1 / max(mean**0.5, 1e-20)
        clip = self.hparams["clip"]
        if clip:
            factor = min(factor, clip / max(float(norm), 1e-20))
        for p, grad in zip(self.rule.parameters(), estimate.grads, strict=True):
            p.grad = grad * factor if p.grad is None else p.grad + grad * factor
        return 1

    def validation_step(self, batch: int, batch_idx: int) -> None:
        """Training losses of networks of unseen initialisations, mean and final, with the average."""
        steps = self.hparams["val_horizon"] or self.hparams["horizon"]
        networks, lr = self.hparams["val_networks"], self.hparams["val_lr"]
        mean, final, held_out = validate(self.average, self.inner[batch_idx], networks, steps, lr)
        self.log("val_loss", mean.mean(), batch_size=1)  # over problems
        self.log(f"val_loss/{self.names[batch_idx]}", mean.mean(), batch_size=1)
        self.log(f"val_final/{self.names[batch_idx]}", final.mean(), batch_size=1)
        self.log(f"val_held_out/{self.names[batch_idx]}", held_out.mean(), batch_size=1)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add inner runs, what is trained, and what is counted, to the state."""
        checkpoint["model"] = self._trained()
        checkpoint["inner_runs"] = [runs.state_dict() for runs in self.runs]
        checkpoint["skipped_steps"] = [self.skipped, self._skipped_in_a_row]
        checkpoint["seen"] = {name: list(seen) for name, seen in self._seen.items()}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on where the state was.

        Raises:
            ValueError: The state is of another rule, or of other inner problems, than this one.
        """
        differing = differing_keys(checkpoint.get("model", {}), self._trained(), "model.")
        if differing:
            raise ValueError(
                f"ckpt_path: the state is of another model ({'; '.join(differing)}); pass what the run was "
                "started with, or start anew under another --name"
            )
        self._saved = checkpoint["inner_runs"]
        self.skipped, self._skipped_in_a_row = checkpoint["skipped_steps"]
        self._seen = {name: list(seen) for name, seen in checkpoint["seen"].items()}

    def _trained(self) -> dict[str, Any]:
        """What the weights of a state belong to, as plain json values."""
        described = {
            # What changes no step of a rule may change from one part of a run to the next.
            "rule": {key: value for key, value in self.rule.config.items() if key != "damping"},
            "inner": {
                name: {
                    "problem": inner.problem.to_config(),
                    "family": inner.family.to_config(),
                    "batch": inner.batch,
                    "networks": networks,
                }
                for name, inner, networks in zip(self.names, self.inner, self.networks, strict=True)
            },
        }
        return json.loads(json.dumps(described))


def _check(options: Mapping[str, Any]) -> None:
    for key in ("lr", "val_lr"):
        if not 0 < options[key] < float("inf"):
            raise ValueError(f"{key}: got {options[key]}, expected a positive learning rate")
    for key in ("growth", "hold", "ema"):
        if not 0 <= options[key] <= 1:
            raise ValueError(f"{key}: got {options[key]}, expected a number in [0, 1]")
    for key in ("warmup_steps", "clip"):
        if not 0 <= options[key] < float("inf"):
            raise ValueError(f"{key}: got {options[key]}, expected at least 0")
    for key in ("horizon", "first_horizon", "shortest", "val_horizon", "val_networks"):
        if options[key] is not None and options[key] < 1:
            raise ValueError(f"{key}: got {options[key]}, expected at least 1")
