"""Meta-training of a one-pass metanet as a LightningModule."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, Literal

import lightning.pytorch as L
import torch
from lightning.pytorch.callbacks import Timer
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor, nn

from amortopt._types import Params
from amortopt.functional import apply_many, loss_and_grad_many
from amortopt.meta.data import Batch, Held
from amortopt.meta.evaluate import evaluate_pass
from amortopt.meta.muon import Muon
from amortopt.meta.schedule import param_groups, rate_factor, update_average
from amortopt.metanets import Metanet, make_metanet
from amortopt.symmetry import extract
from amortopt.tasks import make_family, make_task


class OnePassModule(L.LightningModule):
    r"""Trains a metanet :math:`f` to lower the loss of the networks that it returns.

    A step draws networks and examples, and descends on the mean over networks of
    :math:`L(f(\theta)) + \lambda\lVert f(\theta)\rVert_1`; λ is 0 unless the metanet reads ``l1``.

    Args:
        task: ``name`` of the task and its own arguments, as ``make_task`` takes them.
        family: ``name`` of the family and its own arguments, as ``make_family`` takes them.
        metanet: ``name`` of the metanet and its own arguments, as ``make_metanet`` takes them.
        start: ``"identity"``: a fresh metanet returns its input; ``"proposal"``: it returns what it proposes,
            from where training is much faster.
        lr: Learning rate of matrices, updated by Muon.
        scalar_lr: Learning rate of other parameters.
        correction_lr: Learning rate of the readout's corrections per network.
        weight_decay: Decoupled decay of matrices, except the readout's prototypes.
        prototype_decay: Decoupled decay of the prototypes, the weights that are proposed to all networks.
        warmup_steps: Steps in which the learning rates rise.
        hold: Share of the budget (steps or time) at full learning rates; they fall linearly to 2 % after it.
        ema: Decay of the average of the metanet's weights, which is what is validated and released.
        compile: Whether to compile the meta-loss with ``torch.compile``.

    Attributes:
        metanet: The metanet that is trained.
        average: Its average over steps.
    """

    def __init__(
        self,
        task: dict[str, Any],
        family: dict[str, Any],
        metanet: dict[str, Any],
        *,
        start: Literal["identity", "proposal"] = "proposal",
        lr: float = 0.02,
        scalar_lr: float = 2e-3,
        correction_lr: float = 3e-4,
        weight_decay: float = 0.0,
        prototype_decay: float = 0.0,
        warmup_steps: int = 50,
        hold: float = 0.5,
        ema: float = 0.998,
        compile: bool = False,
    ) -> None:
        super().__init__()
        for key, value in (("lr", lr), ("scalar_lr", scalar_lr), ("correction_lr", correction_lr)):
            if not 0 < value < float("inf"):
                raise ValueError(f"{key}: got {value}, expected a positive learning rate")
        for key, value in (("hold", hold), ("ema", ema)):
            if not 0 <= value <= 1:
                raise ValueError(f"{key}: got {value}, expected a number in [0, 1]")
        for key, value in (
            ("warmup_steps", warmup_steps),
            ("weight_decay", weight_decay),
            ("prototype_decay", prototype_decay),
        ):
            if value < 0:
                raise ValueError(f"{key}: got {value}, expected at least 0")
        self.save_hyperparameters()
        self.task, self.family = _made("task", make_task, task), _made("family", make_family, family)
        with torch.random.fork_rng(devices=[]):
            network = self.family.build()
        # In a tuple, because a module would become part of the state.
        self._network = (network.requires_grad_(False),)
        spec = extract(network, self.family.example_input())
        self.metanet: Metanet = _made(
            "metanet", lambda name, **config: make_metanet(name, spec, **config), metanet
        )
        if start == "proposal":
            _open_gates(self.metanet)
        self.average: Metanet = copy.deepcopy(self.metanet).requires_grad_(False)
        self._loss: Callable[..., Tensor] = torch.compile(self.meta_loss) if compile else self.meta_loss
        self._sum: Tensor | None = None
        self._summed = 0

    @property
    def network(self) -> nn.Module:
        """A network of the family, which says what to compute; its own params do not matter."""
        return self._network[0]

    def improve(
        self, metanet: Metanet, params: Params, read: tuple[Tensor, Tensor], l1: Tensor | None
    ) -> Params:
        """One pass of a metanet over networks, with gradients on ``read`` if it reads any."""
        extra: dict[str, Any] = {}
        if "grads" in metanet.inputs:
            with torch.enable_grad():
                extra["grads"] = loss_and_grad_many(self.network, params, *read, self.task.loss)[1]
            extra["grads"] = {name: g.detach() for name, g in extra["grads"].items()}
        if "l1" in metanet.inputs:
            extra["l1"] = l1
        return metanet(params, **extra)

    def meta_loss(
        self, params: Params, x: Tensor, y: Tensor, read: tuple[Tensor, Tensor], l1: Tensor | None
    ) -> Tensor:
        """Mean over networks of the loss after one pass, in nats."""
        new = self.improve(self.metanet, params, read, l1)
        shared = x.ndim == len(self.task.input_shape) + 1
        losses = self.task.loss(apply_many(self.network, new, x, shared=shared), y)
        if l1 is not None:
            losses = losses + l1 * sum(p.abs().flatten(1).sum(1) for p in new.values())
        return losses.mean()

    def configure_optimizers(self) -> Muon:
        """Muon for matrices, AdamW for the rest."""
        keys = ("lr", "scalar_lr", "correction_lr", "weight_decay", "prototype_decay")
        return Muon(param_groups(self.metanet, **{key: self.hparams[key] for key in keys}))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Meta-loss of a batch."""
        loss = self._loss(batch.params, batch.x, batch.y, (batch.read.x, batch.read.y), batch.l1)
        value = loss.detach()
        self._sum = value if self._sum is None else self._sum + value
        self._summed += 1
        if (self.global_step + 1) % self.trainer.log_every_n_steps == 0:  # pyright: ignore[reportAttributeAccessIssue]
            self._log_training()
        return loss

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

    def progress(self) -> float:
        """Share of the budget that is used up: of steps or of time, whichever is larger, in [0, 1]."""
        trainer = self.trainer
        shares = [0.0]
        if trainer.max_steps > 0:
            shares.append(trainer.global_step / trainer.max_steps)
        for timer in trainer.callbacks:  # pyright: ignore[reportAttributeAccessIssue]
            if isinstance(timer, Timer) and (left := timer.time_remaining()) is not None:
                elapsed = timer.time_elapsed()
                shares.append(elapsed / max(elapsed + left, 1e-9))
        share = min(1.0, max(shares))
        # Clocks differ between processes, and so would the metanets.
        return share if trainer.world_size == 1 else trainer.strategy.broadcast(share)

    def rate_factor(self) -> float:
        """Factor on all learning rates at the current step."""
        return rate_factor(
            self.global_step,
            self.progress(),
            warmup_steps=self.hparams["warmup_steps"],
            hold=self.hparams["hold"],
        )

    def validation_step(self, batch: Held, batch_idx: int) -> None:
        """Accuracy and loss after one pass, of the average and of the metanet itself (``_raw``)."""
        for metanet, suffix in ((self.average, ""), (self.metanet, "_raw")):
            results = evaluate_pass(self, metanet, batch.params, batch.data, batch.read)
            for which, (loss, accuracy) in results.items():
                self._log_value(f"{which}_loss{suffix}", loss.mean())
                self._log_value(f"{which}_accuracy{suffix}", accuracy.mean())

    def _log_training(self) -> None:
        assert self._sum is not None
        mean = self._sum / self._summed
        if not bool(mean.isfinite()):
            raise ValueError(
                f"the meta-loss became {mean.item()} before step {self.global_step + 1}; lower the learning "
                "rates, and resume from an earlier checkpoint if there is one"
            )
        self.log("train_loss", mean)
        self.log("rate", self.rate_factor())
        self._sum, self._summed = None, 0

    def _log_value(self, name: str, value: Tensor) -> None:
        self.log(name, value.float(), batch_size=1, sync_dist=True)


def _open_gates(metanet: Metanet) -> None:
    open_gates = getattr(metanet, "open_gates", None)
    if open_gates is None:
        raise ValueError(
            f"start: got 'proposal', but the metanet {metanet.name!r} has no gates to open; say identity"
        )
    open_gates()


def _made(key: str, make: Callable[..., Any], arguments: dict[str, Any]) -> Any:
    if not isinstance(arguments.get("name"), str):
        raise ValueError(f"{key}: got {arguments!r}, expected a mapping with a `name`")
    try:
        return make(**arguments)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{key}: got {arguments}, but {error}; correct this key of the recipe") from error
