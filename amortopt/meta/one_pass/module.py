"""Meta-training of a one-pass metanet as a LightningModule."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any, Literal

import lightning.pytorch as L
import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor, nn

from amortopt._types import Params
from amortopt.functional.networks import l1_norm, num_networks, params_of
from amortopt.meta.one_pass.data import Batch, Held, View
from amortopt.meta.one_pass.stages import Place, Stage, Stages
from amortopt.meta.schedule import budget_used, param_groups, rate_factor, update_average
from amortopt.metanets import Conditions, Metanet, Rounds, make
from amortopt.metanets.rounds.model import Reading
from amortopt.release import check_passes
from amortopt.symmetry import extract
from amortopt.tasks import (
    Examples,
    Objective,
    evaluate_many,
    loss_and_grad_many,
    loss_many,
    make_family,
    make_problem_or_family,
)
from amortopt.tasks.examples import Gradient
from amortopt.training.muon import Muon
from amortopt.zoo.config import differing_keys

_RANKED = 20
"""Steps from one ranking of weights by size to the next, for metanets that set some to zero."""
MOST_SKIPPED = 50
"""Steps in a row without finite gradients after which training stops."""


@dataclass(frozen=True, eq=False)
class Result:
    """What n networks reach on some examples after the last pass.

    Attributes:
        loss: [n], in nats, or as the objective has it.
        score: [n], the objective's: accuracy in [0, 1], PSNR in dB.
        objective: Loss plus L1 strength times L1 norm, [n].
        l1_cut: By how much the L1 norm fell, as a share of what it was, [n]; negative where it grew.
    """

    loss: Tensor
    score: Tensor
    objective: Tensor
    l1_cut: Tensor


class OnePassModule(L.LightningModule):
    r"""Trains a metanet :math:`f` to lower the loss of the networks that it returns.

    A step draws networks and examples, and descends on the mean over networks of
    :math:`L(f(\theta)) + \lambda\lVert f(\theta)\rVert_1`; λ is 0 unless the metanet reads ``l1``. With
    several passes it is the mean over f(θ), f(f(θ)), ... A step whose gradients are not finite is left out.

    Args:
        problem: ``name`` of the problem and its arguments, as ``make_problem`` takes them; or of a family of
            problems, as ``make_problem_family`` does.
        family: ``name`` of the family and its arguments, as ``make_family`` takes them.
        metanet: ``name`` of the metanet and its arguments, as ``make`` takes them.
        stages: What is trained one after the other, for metanets with rounds; see
            [Stage][amortopt.meta.one_pass.stages.Stage]. By default the first reading with all rounds.
        early_rounds: Share of the loss that is taken after rounds before the last one, in [0, 1).
        start: ``"identity"``: a fresh metanet returns its input; ``"proposal"``: it returns what it proposes,
            from where training is much faster.
        prototype: What the prototype of a metanet with rounds starts from: ``"normal"`` weights, or a fresh
            network of the ``"family"``, with the family's own initialisation.
        log_loss: Whether the meta-loss is the mean of the logarithms of the losses. Then every problem counts
            alike, however large its loss; for squared errors it is PSNR but for a factor.
        most_loss: Loss m beyond which a loss L counts as m (1 + log(L / m)), so that problems on which a pass
            diverges, as passes of many rounds do at first, do not outweigh all others. None: as it is, or by
            its logarithm with ``log_loss``.
        passes: How often the metanet is applied in a row; the loss is the mean over what every pass returns.
            The released optimizer applies it as often.
        lr: Learning rate of the matrices of the metanet's layers, updated by Muon.
        prototype_lr: Learning rate of the readout's prototypes, also by Muon.
        scalar_lr: Learning rate of other parameters.
        correction_lr: Learning rate of the readout's corrections per network.
        weight_decay: Decoupled decay of matrices, except the readout's prototypes.
        prototype_decay: Decoupled decay of the prototypes, the weights that are proposed to all networks.
        warmup_steps: Steps in which the learning rates rise.
        l1_warmup: Share of the budget in which the L1 penalty of the loss rises from 0 to λ. Networks that
            are made sparse from good dense ones end up better than those that never were dense.
        hold: Share of the budget (steps or time) at full learning rates; they fall linearly to 0 after it.
        ema: Decay of the average of the metanet's weights, which is what is validated and released.
        compile: Whether to compile the meta-loss with ``torch.compile``.

    Attributes:
        metanet: The metanet that is trained.
        average: Its average over steps.
        skipped: Steps that were left out because their gradients were not finite.
        reported: Names of further values that a line on the console has.
    """

    def __init__(
        self,
        problem: dict[str, Any],
        family: dict[str, Any],
        metanet: dict[str, Any],
        *,
        stages: list[Stage] | None = None,
        early_rounds: float = 0.0,
        start: Literal["identity", "proposal"] = "proposal",
        prototype: Literal["normal", "family"] = "normal",
        log_loss: bool = False,
        most_loss: float | None = None,
        passes: int = 1,
        lr: float = 0.005,
        prototype_lr: float = 0.04,
        scalar_lr: float = 2e-3,
        correction_lr: float = 3e-4,
        weight_decay: float = 0.0,
        prototype_decay: float = 0.0,
        warmup_steps: int = 50,
        l1_warmup: float = 0.25,
        hold: float = 0.5,
        ema: float = 0.998,
        compile: bool = False,
    ) -> None:
        super().__init__()
        check_passes(passes)
        self.save_hyperparameters(ignore=["stages"])
        options = self.hparams
        for key in ("lr", "prototype_lr", "scalar_lr", "correction_lr"):
            if not 0 < options[key] < float("inf"):
                raise ValueError(f"{key}: got {options[key]}, expected a positive learning rate")
        for key in ("l1_warmup", "hold", "ema", "early_rounds"):
            if not 0 <= options[key] <= 1:
                raise ValueError(f"{key}: got {options[key]}, expected a number in [0, 1]")
        if most_loss is not None and (log_loss or most_loss is True or not 0 < most_loss < float("inf")):
            raise ValueError(
                f"most_loss: got {most_loss}, expected a positive number, or none; with log_loss all losses "
                "count by their logarithms, so leave it out"
            )
        for key in ("warmup_steps", "weight_decay", "prototype_decay"):
            if options[key] < 0:
                raise ValueError(f"{key}: got {options[key]}, expected at least 0")
        self.passes = passes
        self.problem = _made("problem", make_problem_or_family, problem)
        self.family = _made("family", make_family, family)
        with torch.random.fork_rng(devices=[]):
            network = self.family.build()
        # In a tuple, because a module would become part of the state.
        self._network = (network.requires_grad_(False),)
        spec = extract(network, self.family.example_input())
        if metanet.get("name") == Rounds.name:
            shapes = {name: list(p.shape) for name, p in network.named_parameters()}
            metanet = metanet | {
                "shapes": shapes,
                "scales": self.family.scales(),
                "input_shape": list(self.family.input_shape),
            }
        self.metanet: Metanet = _made("metanet", lambda name, **config: make(name, spec, **config), metanet)
        self.stages = Stages.of(self.metanet, stages)
        if prototype == "family":
            if not isinstance(self.metanet, Rounds):
                raise ValueError(
                    f"prototype: got 'family', but the metanet {self.metanet.name!r} has no rounds; say "
                    "normal"
                )
            self.metanet.start_from(params_of(network))
        if start == "proposal":
            open_gates = getattr(self.metanet, "open_gates", None)
            if open_gates is None:
                raise ValueError(
                    f"start: got 'proposal', but the metanet {self.metanet.name!r} has no gates to open; say "
                    "identity"
                )
            open_gates()
        self.average: Metanet = copy.deepcopy(self.metanet).requires_grad_(False)
        self._loss: Callable[..., Tensor] = torch.compile(self.meta_loss) if compile else self.meta_loss
        self.skipped = 0
        self.reported: tuple[str, ...] = ()
        self._skipped_in_a_row = 0
        self._sums: Tensor | None = None

    @property
    def network(self) -> nn.Module:
        """A network of the family, which says what to compute; its params do not matter."""
        return self._network[0]

    def conditions(
        self,
        metanet: Metanet,
        params: Params,
        read: Examples,
        l1: Tensor | None,
        *,
        reading: Reading | None = None,
        view: View | None = None,
    ) -> Conditions:
        """What a metanet reads of networks [B, ...]; gradients can be differentiated where params can.

        Args:
            metanet: Declares what it reads.
            params: The networks, whose functions may be read.
            read: Examples for gradients.
            l1: L1 strengths [B].
            reading: Which of batch and function are read; by default the batch where it is declared.
            view: How ``read`` differs from what the networks were trained on.
        """

        def gradient_on(examples: Examples, objective: Objective) -> Gradient:
            def gradient(at: Params) -> Params:
                # Rounds are differentiated through the gradients that they take.
                again = torch.is_grad_enabled() and any(p.requires_grad for p in at.values())
                return loss_and_grad_many(self.network, at, examples, objective, create_graph=again)[1]

            return gradient

        declared, objective = metanet.conditions, self.problem.objective
        if reading is None and declared & {"batch", "function"}:
            reading = "batch" if "batch" in declared else "function"
        function = None
        if reading in ("function", "both"):
            assert metanet.probes is not None
            with torch.no_grad():
                answers = (view or View()).answers(self.network, params, metanet.probes)
            function = gradient_on(answers, objective.matching())
        strengths = l1 if "l1" in declared else None
        if reading not in ("batch", "both"):
            return Conditions(l1=strengths, function=function)
        return Conditions.of_batch(
            read,
            lambda examples: gradient_on(examples, objective),
            num_networks(params),
            l1=strengths,
            function=function,
        )

    def improve(
        self,
        metanet: Metanet,
        params: Params,
        read: Examples,
        l1: Tensor | None,
        *,
        reading: Reading | None = None,
        rounds: int | None = None,
        view: View | None = None,
        written: bool = True,
    ) -> list[Params]:
        """New params [B, ...] after each round of a metanet that has rounds, or after each pass.

        Args:
            metanet: Declares what it reads.
            params: Networks [B, ...].
            read: Examples for gradients, computed anew before each pass.
            l1: L1 strengths [B].
            reading: As for ``conditions``.
            rounds: Rounds of a pass; by default all.
            view: As for ``conditions``.
            written: As for ``Rounds.after_rounds``.
        """
        results = [params]
        for _ in range(self.passes):
            now = results[-1]
            conditions = self.conditions(metanet, now, read, l1, reading=reading, view=view)
            if isinstance(metanet, Rounds):
                results += metanet.after_rounds(now, conditions, rounds, written=written)[1:]
            else:
                results.append(metanet(now, conditions))
        return results[1:]

    def meta_loss(
        self,
        params: Params,
        examples: Examples,
        read: Examples,
        l1: Tensor | None,
        penalty: Tensor | None = None,
        view: View | None = None,
    ) -> Tensor:
        """Mean over networks of the loss after the rounds or passes, or of its log, weighted over these.

        Args:
            params: Networks [B, ...].
            examples: For the loss, shared by all networks or per network.
            read: Examples for gradients that the metanet reads.
            l1: L1 strengths [B] that the metanet reads.
            penalty: L1 strengths [B] of the loss; by default the same.
            view: As for ``conditions``.
        """
        penalty, stage = l1 if penalty is None else penalty, self.stage()
        results = self.improve(
            self.metanet,
            params,
            read,
            l1,
            reading=stage.reading,
            rounds=stage.rounds,
            view=view,
            # The loss is one of functions; the L1 norm, and a pass after the first, see the gauge.
            written=penalty is not None or self.passes > 1,
        )
        # Every pass counts alike; of rounds the last one counts most.
        weights = [1 / len(results)] * len(results)
        if isinstance(self.metanet, Rounds) and len(results) > 1:
            early = self.hparams["early_rounds"]
            weights = [early / (len(results) - 1)] * (len(results) - 1) + [1 - early]
        objective = self.problem.objective
        losses = [
            weight * self._counted(loss_many(self.network, new, examples, objective, l1=penalty)).mean()
            for new, weight in zip(results, weights, strict=True)
            if weight
        ]
        return torch.stack(losses).sum()

    def _counted(self, loss: Tensor) -> Tensor:
        """What stands for losses [B] in the meta-loss: logarithms, or losses bounded by ``most_loss``."""
        if self.hparams["log_loss"]:
            return loss.log()
        most = self.hparams["most_loss"]
        return loss if most is None else loss.clamp(max=most) + most * (loss / most).clamp(min=1).log()

    @torch.no_grad()
    def evaluate(
        self,
        metanet: Metanet,
        params: Params,
        data: Mapping[str, Examples],
        read: Examples,
        *,
        l1: float = 0.0,
        reading: Reading | None = None,
        rounds: int | None = None,
        chunk: int = 64,
    ) -> dict[str, Result]:
        """What networks reach on each of ``data`` after all passes of a metanet.

        Args:
            metanet: The metanet.
            params: Networks before, [n, ...].
            data: Name -> examples.
            read: Examples for gradients, if the metanet reads them.
            l1: L1 strength of all networks.
            reading: As for ``conditions``.
            rounds: Rounds of a pass; by default all.
            chunk: Networks at a time.
        """
        parts = []
        for start in range(0, num_networks(params), chunk):
            part = {name: p[start : start + chunk] for name, p in params.items()}
            strengths = read.x.new_full((num_networks(part),), l1)
            some = read.of(slice(start, start + chunk))
            parts.append(self.improve(metanet, part, some, strengths, reading=reading, rounds=rounds)[-1])
        new = {name: torch.cat([part[name] for part in parts]) for name in params}
        norm = l1_norm(new)
        cut = 1 - norm / l1_norm(params).clamp(min=1e-12)
        results = {}
        for name, examples in data.items():
            loss, score = evaluate_many(self.network, new, examples, self.problem.objective)
            results[name] = Result(loss, score, loss + l1 * norm, cut)
        return results

    def stage(self) -> Stage:
        """What is trained at the current step."""
        return self.stages[0 if len(self.stages) == 1 else self._place().number]

    def _place(self, step: int | None = None) -> Place:
        """Where a step is, by default the current one."""
        return self.stages.at(self.global_step if step is None else step, self.trainer.max_steps)

    def on_fit_start(self) -> None:
        """Tell the metanet how many examples it will read, and show it the probes, before the first step."""
        read = getattr(self.trainer.datamodule, "read", None)  # pyright: ignore[reportAttributeAccessIssue]
        for metanet in (self.metanet, self.average):
            if isinstance(metanet, Rounds) and read is not None:
                metanet.set_most_examples(read[1])
        if self.metanet.probes is not None and self.trainer.global_step == 0:
            datamodule: Any = self.trainer.datamodule  # pyright: ignore[reportAttributeAccessIssue]
            for metanet in (self.metanet, self.average):
                assert metanet.probes is not None
                metanet.probes.copy_(datamodule.probes(len(metanet.probes)))

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """At the first step of a stage, begin it: where nothing is trained yet, or where earlier ones are."""
        place = self._place()
        if not isinstance(self.metanet, Rounds):
            return
        if self.global_step % _RANKED == 0:
            self.metanet.set_progress(self.progress())
            assert isinstance(self.average, Rounds)
            self.average.share_of_zeros = self.metanet.share_of_zeros
        if self.global_step != place.first:
            return
        stage, model = self.stages[place.number], self.stages.model_of(place.number)
        if model is not None:
            for metanet in (self.metanet, self.average):
                assert isinstance(metanet, Rounds)
                metanet.begin(_reading(stage), _reading(model), model.rounds)
        else:
            # Let the first rounds see gradients of their usual size.
            conditions = self.conditions(
                self.metanet,
                batch.params,
                batch.read,
                batch.l1,
                reading=stage.reading,
                view=batch.view,
            )
            self.metanet.calibrate(conditions)
            self.average.load_state_dict(self.metanet.state_dict())

    def on_train_end(self) -> None:
        """Let the released metanet set all weights to zero that it should, however early training stopped."""
        for metanet in (self.metanet, self.average):
            if isinstance(metanet, Rounds):
                metanet.share_of_zeros = 1.0

    def configure_optimizers(self) -> Muon:
        """Muon for matrices, AdamW for the rest."""
        keys = ("lr", "prototype_lr", "scalar_lr", "correction_lr", "weight_decay", "prototype_decay")
        return Muon(param_groups(self.metanet, **{key: self.hparams[key] for key in keys}))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Meta-loss of a batch."""
        penalty = None if batch.l1 is None else batch.l1 * self.penalty_factor()
        loss = self._loss(batch.params, batch.examples, batch.read, batch.l1, penalty, batch.view)
        value = loss.detach()
        # Sum and number of the finite losses, without waiting for the device.
        added = torch.stack([torch.nan_to_num(value, 0, 0, 0), value.isfinite().to(value.dtype)])
        self._sums = added if self._sums is None else self._sums + added
        if (self.global_step + 1) % self.trainer.log_every_n_steps == 0:  # pyright: ignore[reportAttributeAccessIssue]
            self.log("train_loss", self._sums[0] / self._sums[1])  # NaN if there was no finite one
            self.log("rate", self.rate_factor())
            self.log("skipped_steps", float(self.skipped))
            self._sums = None
        return loss

    def configure_gradient_clipping(
        self,
        optimizer: Any,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip the gradients, or drop them all if one is not finite: then the step changes nothing.

        Raises:
            ValueError: That happened in too many steps in a row.
        """
        grads = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        norm = nn.utils.get_total_norm(grads)
        # The same in all processes, because they have averaged their gradients.
        if bool(norm.isfinite()):
            self._skipped_in_a_row = 0
            if gradient_clip_val and gradient_clip_algorithm in (None, "norm"):
                nn.utils.clip_grads_with_norm_(self.metanet.parameters(), gradient_clip_val, norm)
            else:
                self.clip_gradients(
                    optimizer,
                    gradient_clip_val=gradient_clip_val,
                    gradient_clip_algorithm=gradient_clip_algorithm,
                )
            return
        optimizer.zero_grad(set_to_none=True)
        self.skipped += 1
        self._skipped_in_a_row += 1
        if self._skipped_in_a_row >= MOST_SKIPPED:
            raise ValueError(
                f"the gradients were not finite in {MOST_SKIPPED} steps in a row, up to step "
                f"{self.global_step + 1}; lower the learning rates, and start anew or resume from "
                "an earlier state"
            )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what is trained, and what is counted, to the state."""
        checkpoint["model"] = self._trained()
        checkpoint["skipped_steps"] = [self.skipped, self._skipped_in_a_row]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on counting; states of earlier versions have no count.

        Raises:
            ValueError: The state is of another model than this one.
        """
        trained = self._trained()
        if differing := differing_keys(checkpoint.get("model", trained), trained, "model."):
            raise ValueError(
                f"ckpt_path: the state is of another model ({'; '.join(differing)}); pass what the run was "
                "started with, or start anew under another --name"
            )
        self.skipped, self._skipped_in_a_row = checkpoint.get("skipped_steps", (0, 0))

    def _trained(self) -> dict[str, Any]:
        """What the weights of a state belong to, as plain json values."""
        # The most examples are those of the data, which the metanet learns when training starts.
        config = {key: value for key, value in self.metanet.config.items() if key != "most_examples"}
        described = {
            "family": self.family.to_config(),
            "metanet": {"name": self.metanet.name} | config,
            "passes": self.passes,
        }
        return json.loads(json.dumps(described))

    def optimizer_step(
        self,
        epoch: int,
        batch_idx: int,
        optimizer: Any | LightningOptimizer,
        optimizer_closure: Callable[[], Any] | None = None,
    ) -> None:
        """Set the learning rates, take a step, update the average."""
        factor = self.rate_factor()
        for group in optimizer.param_groups:
            group["lr"] = group["rate"] * factor
        optimizer.step(closure=optimizer_closure)
        # Here and not in on_train_batch_end, which comes after the callback that saves checkpoints.
        update_average(self.average, self.metanet, self.global_step, self.hparams["ema"])
        for old, new in zip(self.average.buffers(), self.metanet.buffers(), strict=True):
            old.copy_(new)

    def progress(self) -> float:
        """Share of the steps that are done, in [0, 1]."""
        return budget_used(self.trainer)

    def rate_factor(self) -> float:
        """Factor on all learning rates at the current step; every stage has the whole schedule."""
        place = self._place()
        done = self.global_step - place.first
        return rate_factor(
            done,
            min(1.0, done / max(1, place.end - place.first)),
            warmup_steps=self.hparams["warmup_steps"],
            hold=self.hparams["hold"],
        )

    def penalty_factor(self) -> float:
        """Factor on the L1 strengths of the loss at the current step, in [0, 1]."""
        share = self.hparams["l1_warmup"]
        return min(1.0, self.progress() / share) if share else 1.0

    def validation_step(self, batch: Held, batch_idx: int) -> None:
        """Score and val loss after the last pass, of the average and of the metanet itself (``_raw``).

        For metanets that read functions, also the average's score on networks that were trained on their
        problems, with the reading and their epochs as names. For metanets that read L1 strengths, at strength
        0; and at others the average's score, objective and L1-norm cut on the val data, with the names of
        ``batch.strengths``.
        """
        values: dict[str, Tensor] = {}
        score = self.problem.objective.score_name
        by_reading = self.stages.begun(self._place(max(0, self.global_step - 1)).number)
        first = next(iter(by_reading))
        for metanet, suffix in ((self.average, ""), (self.metanet, "_raw")):
            results = self.evaluate(
                metanet,
                batch.params
                if first == "batch" or not batch.starts
                else next(reversed(batch.starts.values())),
                batch.data,
                batch.read,
                l1=batch.strengths[""],
                reading=first,
                rounds=by_reading[first],
            )
            values |= {f"{which}_{score}{suffix}": result.score for which, result in results.items()}
            # Not on the train data, where it is not the meta-loss, which is called train_loss.
            values[f"val_loss{suffix}"] = results["val"].loss
        val = {"val": batch.data["val"]}
        for reading, (epochs, starts) in product(list(by_reading)[1:], batch.starts.items()):
            result = self.evaluate(
                self.average,
                starts,
                val,
                batch.read,
                l1=batch.strengths[""],
                reading=reading,
                rounds=by_reading[reading],
            )
            values[f"val_{score}_{reading}_{epochs}"] = result["val"].score
        self.reported = tuple(
            name for name in values if name.startswith(f"val_{score}_") and name[-1].isdigit()
        )
        for suffix, strength in batch.strengths.items():
            if suffix:
                result = self.evaluate(self.average, batch.params, val, batch.read, l1=strength)["val"]
                values[f"val_objective{suffix}"] = result.objective
                values[f"val_{score}{suffix}"] = result.score
                values[f"val_cut{suffix}"] = result.l1_cut
        for name, value in values.items():
            self.log(name, value.mean().float(), batch_size=1, sync_dist=True)


def _reading(stage: Stage) -> Reading:
    assert stage.reading is not None
    return stage.reading


def _made(key: str, make: Callable[..., Any], arguments: dict[str, Any]) -> Any:
    if not isinstance(arguments.get("name"), str):
        raise ValueError(f"{key}: got {arguments!r}, expected a mapping with a `name`")
    try:
        return make(**arguments)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{key}: got {arguments}, but {error}; correct this key of the recipe") from error
