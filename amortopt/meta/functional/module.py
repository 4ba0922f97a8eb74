"""Meta-training of a functional, or of an editor, as a LightningModule.

Legend: B networks, N inputs.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import lightning.pytorch as L
import torch
from torch import Tensor, nn

from amortopt._types import Params
from amortopt.functional.networks import apply_many
from amortopt.meta.functional.data import NetworksDataModule, Part
from amortopt.meta.functional.editing import edited_answers, editing_loss
from amortopt.meta.functional.optimizer import reader_optimizer
from amortopt.meta.schedule import budget_used, update_average
from amortopt.metanets import Functional, Metanet, make, reads_answers
from amortopt.reading.scores import functional_scores
from amortopt.symmetry import SymmetrySpec
from amortopt.tasks.families import family_from
from amortopt.zoo.config import differing_keys

_CHUNK = 256  # networks per pass in validation


class FunctionalModule(L.LightningModule):
    r"""Trains a functional to predict labels of networks, or a metanet to edit what networks compute.

    A functional is trained by its head's loss, an editor by the squared error of the edited networks'
    answers (a `PictureEditor` by that of the pictures that it draws from, too). AdamW, and Muon for what an
    editor calls matrices and prototypes; a linear warm-up, a cosine decay; the average of the weights is
    validated and released.

    Args:
        functional: ``name`` and arguments of a functional, ``head`` among them; None for an editor.
        editor: ``name`` and arguments of a metanet; None for a functional.
        lr: Highest learning rate.
        matrix_lr: Highest rate of Muon.
        weight_decay: Of AdamW.
        warmup: Share of the steps in which the learning rate rises.
        ema: Decay of the average of the weights.

    Attributes:
        trained: What is trained; made when the zoo is read.
        average: Its average.

    Raises:
        ValueError: An argument is out of its range.
    """

    def __init__(
        self,
        functional: dict[str, Any] | None = None,
        editor: dict[str, Any] | None = None,
        *,
        lr: float = 2e-3,
        matrix_lr: float = 0.02,
        weight_decay: float = 0.01,
        warmup: float = 0.05,
        ema: float = 0.99,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        if (functional is None) == (editor is None):
            raise ValueError(
                "model.functional, model.editor: got both or none, expected one of them: a functional gives "
                "numbers, an editor other weights"
            )
        if not 0 < lr < math.inf or not 0 < matrix_lr < math.inf:
            raise ValueError(f"lr, matrix_lr: got {lr} and {matrix_lr}, expected positive numbers")
        if not 0 <= warmup < 1 or not 0 <= ema < 1:
            raise ValueError(f"warmup, ema: got {warmup} and {ema}, expected shares in [0, 1)")
        self.trained: Functional | Metanet | None = None
        self.average: Functional | Metanet | None = None
        self._network: tuple[nn.Module] | None = None  # in a tuple, because it is no further module

    @property
    def reported(self) -> tuple[str, ...]:
        """Names of what the console shows after a validation."""
        return ("val_tau", "val_mse_x100")

    @property
    def data(self) -> NetworksDataModule:
        """What it is trained on."""
        data: Any = self.trainer.datamodule  # pyright: ignore[reportAttributeAccessIssue]
        return data

    @property
    def spec(self) -> SymmetrySpec:
        """Symmetry of the networks."""
        assert self.trained is not None
        return self.trained.spec

    @property
    def network(self) -> nn.Module:
        """Architecture of the networks."""
        assert self._network is not None
        return self._network[0]

    def progress(self) -> float:
        """Share of the budget that is used up, in [0, 1]."""
        return budget_used(self.trainer)

    def setup(self, stage: str) -> None:
        """Read the zoo, and make what is trained for its networks.

        Raises:
            ValueError: Zoo, labels and head do not fit together.
        """
        if self.trained is not None:
            return
        data, spec = self.data, self.data.spec()
        data.augment.check(spec)
        config = dict(self.hparams["functional"] or self.hparams["editor"])
        name = config.pop("name", None)
        if isinstance(name, str) and reads_answers(name):
            given = config.setdefault("family", data.family.to_config())
            if family_from(given) != data.family:
                raise ValueError(
                    f"family: got {family_from(given)}, but the zoo's networks are {data.family}; leave it "
                    "out"
                )
        if self.hparams["functional"] is not None:
            made = make(str(name), spec, **config)
            if not isinstance(made, Functional) or made.head.units is not None:
                raise ValueError(
                    f"model.functional: got {name!r}, expected a functional of whole networks, such as "
                    "scalegmn_functional; labels of a zoo are about networks, not units"
                )
            data.prepare(made.head)
            train = data.part("train")
            made.head.observe(train.labels)
            made.standardize(train.params)
        else:
            made = make(str(name), spec, **config)
            if not isinstance(made, Metanet) or made.conditions:
                raise ValueError(f"model.editor: got {name!r}, expected a metanet that reads weights alone")
            data.prepare(None)
            standardize = getattr(made, "standardize", None)
            if standardize is not None:
                standardize(data.part("train").params)
        self.trained = made
        self.average = copy.deepcopy(made).requires_grad_(False)
        with torch.random.fork_rng(devices=[]):
            self._network = (data.family.build(),)

    def on_fit_start(self) -> None:
        """Raise a ``ValueError`` if there are several processes, which would all draw the same networks."""
        if self.trainer.world_size > 1:
            raise ValueError(
                f"trainer.devices: got {self.trainer.world_size}, expected 1; raise data.networks instead"
            )

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW over all parameters, but for those of a role that Muon is for."""
        assert self.trained is not None
        lr, matrix_lr, decay = (self.hparams[key] for key in ("lr", "matrix_lr", "weight_decay"))
        return reader_optimizer(self.trained, lr=lr, matrix_lr=matrix_lr, weight_decay=decay)

    def factor(self) -> float:
        """Factor on the learning rate."""
        progress, warmup = self.progress(), self.hparams["warmup"]
        rise = min(1.0, (progress + 1e-3) / warmup) if warmup else 1.0
        return rise * 0.5 * (1 + math.cos(math.pi * progress))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Loss of a step's networks."""
        assert self.trained is not None
        part = self.data.draw(self.global_step, self.spec).to(self.device)
        optimizer: Any = self.optimizers()
        for group in optimizer.param_groups:
            group["lr"] = group["rate"] * self.factor()
        loss = self.loss(self.trained, part)
        self.log("train_loss", loss.detach())
        return loss

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Move the average."""
        assert self.trained is not None and self.average is not None
        update_average(self.average, self.trained, self.global_step, self.hparams["ema"])

    def loss(self, model: Functional | Metanet, part: Part) -> Tensor:
        """What training lowers, of some networks."""
        if isinstance(model, Functional):
            (raw,) = model.raw([part.params])
            return model.head.loss(raw, part.labels)
        assert part.values is not None
        return editing_loss(model, self.network, part.params, part.values.x, part.values.y)

    def validation_step(self, batch: int, batch_idx: int) -> None:
        """Scores of the average on val networks."""
        for name, value in self.scores("val").items():
            self.log(f"val_{name}", value, batch_size=1)

    @torch.no_grad()
    def scores(self, which: Any) -> dict[str, float]:
        """How the average does on a part.

        Returns:
            ``loss``; ``accuracy`` in [0, 1] for classes; ``tau`` and ``mae`` for numbers; ``mse_x100`` for
            edits, and ``mse_x100_unedited``, of the networks as they are.
        """
        part = self.data.part(which, self.device)
        if isinstance(self.average, Functional):
            return functional_scores(self.average, self.raw(part.params), part.labels)
        assert self.average is not None and part.values is not None
        errors: dict[str, list[Tensor]] = {"mse_x100": [], "mse_x100_unedited": []}
        for rows in torch.arange(len(part), device=self.device).split(_CHUNK):
            some = part.take(rows)
            assert some.values is not None
            answers = {
                "mse_x100": edited_answers(self.average, self.network, some.params, some.values.x),
                "mse_x100_unedited": apply_many(self.network, some.params, some.values.x),
            }
            for key, answer in answers.items():
                errors[key].append((answer - some.values.y).square().mean((1, 2)))
        return {key: 100 * torch.cat(values).mean().item() for key, values in errors.items()}

    @torch.no_grad()
    def raw(self, params: Params) -> Tensor:
        """Raw numbers of the averaged functional, [n, raw], in eval mode."""
        assert isinstance(self.average, Functional)
        self.average.eval()
        count = len(next(iter(params.values())))
        parts = [
            self.average.raw([{k: p[i : i + _CHUNK] for k, p in params.items()}])[0]
            for i in range(0, count, _CHUNK)
        ]
        return torch.cat(parts)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what the weights belong to."""
        checkpoint["model"] = self._described()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse the state of another model; raises a ``ValueError`` that names the difference."""
        if differing := differing_keys(checkpoint.get("model", {}), self._described(), "model."):
            raise ValueError(
                f"ckpt_path: the state is of another model ({'; '.join(differing)}); pass what the run was "
                "started with, or start anew under another --name"
            )

    def _described(self) -> dict[str, Any]:
        data = self.data
        return {
            "functional": self.hparams["functional"],
            "editor": self.hparams["editor"],
            "label": data.label,
            "edit": data.edit,
            "networks": data.networks,
        }
