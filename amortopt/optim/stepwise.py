"""A learned update rule as a ``torch.optim.Optimizer``."""

from __future__ import annotations

import copy
import math
import os
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, get_args, overload

import torch
from torch import Tensor, nn

from amortopt._types import Params
from amortopt.metanets.update_rule.layout import UpdateLayout
from amortopt.metanets.update_rule.rule import UNFRule
from amortopt.optim.stepwise_inputs import (
    as_groups,
    check_options,
    members_of,
    name_in_model,
    nonfinite_message,
    read_parameters,
    read_rule,
    spec_of,
    step_options,
    unwrapped,
)
from amortopt.optim.stepwise_state import FORMAT, check_state_dict, rule_digest
from amortopt.optim.stepwise_work import Workspace, move
from amortopt.symmetry import SymmetrySpec

Nonfinite = Literal["skip", "raise"]
LEARNING_RATE = 0.04
"""Of a ``UNFOptimizer``, by default."""
_LARGEST = torch.finfo(torch.float32).max
_SKIPPED_IN_A_ROW = 5  # steps, before there is a warning: a GradScaler may need some to find its scale


class UNFOptimizer(torch.optim.Optimizer):
    r"""Muon and Adam with what a metanet adds to their directions, for any architecture.

    .. math:: W \leftarrow (1 - \eta\lambda) W - \eta\, d(W, \nabla, \text{history})

    with the direction d of [UNFRule][amortopt.metanets.UNFRule], a learning rate η that means what Muon's
    does, and decoupled weight decay λ. The root mean square of d over a tensor has a bound that is stated
    there, whatever the gradients are, so a step cannot replace a network. The rule reads all parameters of
    the model at once, whichever group they are in. It is float32, on the model's device, and so is its state,
    four numbers per weight, unless ``state_dtype`` halves it; each parameter is rounded to its own dtype at
    the end.

    Parameters that are in no group, do not require gradients or have ``grad=None`` stay as they are; to the
    rule their gradients are zero, and so are weights that are no floating-point numbers, or are infinite and
    in no group. So do elements whose gradient has been exactly zero at every step (masked weights, padding
    rows). A step in which no parameter has a gradient does nothing.

    ``state`` is the rule's state: ``momenta`` [3, *shape] and ``second`` [1, *shape] per parameter, and one
    ``step`` that all share, as they do a ``length`` if the rule has a ``floor``. It can be edited in place,
    assigned and cleared; the next step reads what is there.

    Args:
        model: The network; compiled or within ``DistributedDataParallel`` is the same as plain.
        example_input: What its forward takes, or a tuple of that, on its device: the model is traced once to
            find its symmetry. Not needed with ``spec``. A model that cannot be traced is read tensor by
            tensor, with a warning that says why.
        spec: What may be permuted in the model, from [extract][amortopt.symmetry.extract].
        rule: The update rule, which is copied; or where to load it from, see
            [load_release][amortopt.load_release].
        param_groups: Groups with options of their own: ``{"params": [names or tensors], "lr": ...}``. What is
            in no group stays as it is. By default all parameters are one group.
        lr: Learning rate η >= 0, as Muon's; any scheduler of torch may change it.
        weight_decay: λ >= 0, decoupled: per step and unit of η, as in AdamW.
        nonfinite: What to do where gradients or weights are NaN, infinite or so large that their squares are:
            ``"skip"`` the step, count it in ``skipped`` and warn after five in a row; or ``"raise"`` a
            ``ValueError``. In both cases weights and state stay as they are. The same where the update is not
            finite, but then the state already has the gradients in it.
        strict: Whether a model that cannot be traced is an error.
        state_dtype: ``torch.bfloat16`` keeps the state in half of the memory, rounded at random so that small
            changes add up; the step itself is computed in float32 all the same.
        symmetry: The earlier name of ``spec``.

    Raises:
        ValueError: An argument is out of its range, the spec is not this model's, parameters are on several
            devices or no real numbers, a group holds a tensor that is not the model's, or ``strict`` is True
            and the model cannot be traced.

    Examples:
        >>> import torch, amortopt
        >>> from amortopt.metanets import UNFRule
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Tanh(), torch.nn.Linear(3, 2))
        >>> opt = amortopt.UNFOptimizer(net, torch.zeros(5, 4), rule=UNFRule(), lr=0.05)
        >>> net(torch.ones(5, 4)).square().mean().backward()
        >>> opt.step()
        >>> opt.skipped
        0
    """

    def __init__(
        self,
        model: nn.Module,
        example_input: Tensor | tuple[Any, ...] | None = None,
        *,
        spec: SymmetrySpec | None = None,
        rule: UNFRule | str | os.PathLike[str] = "unf-small",
        param_groups: Iterable[Mapping[str, Any]] | None = None,
        lr: float = LEARNING_RATE,
        weight_decay: float = 0.0,
        nonfinite: Nonfinite = "skip",
        strict: bool = False,
        state_dtype: torch.dtype = torch.float32,
        symmetry: SymmetrySpec | None = None,
    ) -> None:
        if symmetry is not None:
            warnings.warn("UNFOptimizer: symmetry= is now spec=", FutureWarning, stacklevel=2)
            spec = spec or symmetry
        if state_dtype not in (torch.float32, torch.bfloat16):
            raise ValueError(f"state_dtype: got {state_dtype!r}, expected torch.float32 or torch.bfloat16")
        if nonfinite not in get_args(Nonfinite):
            raise ValueError(f"nonfinite: got {nonfinite!r}, expected 'skip' or 'raise'")
        check_options(lr, weight_decay)
        base = unwrapped(model)
        self._params = read_parameters(base)
        self._names: dict[Tensor, str] = {p: name for name, p in self._params.items()}
        spec = spec_of(base, example_input, spec, strict=strict)
        integers = {name for name, p in self._params.items() if not p.is_floating_point()}
        shapes = {n: p.shape for n, p in self._params.items() if n in spec.params or n not in integers}
        self._layout = UpdateLayout(spec, shapes)
        self._blank = integers & set(shapes)  # weights that the rule reads as zeros
        self._rule = copy.deepcopy(read_rule(rule)).float().requires_grad_(False).eval()
        self._digest = rule_digest(self._rule)
        self.nonfinite: Nonfinite = nonfinite
        self.state_dtype = state_dtype
        self.skipped = self._skipped_in_a_row = 0
        self._work: Workspace | None = None
        groups = [{"params": list(self._params.values())}] if param_groups is None else param_groups
        super().__init__(as_groups(groups), {"lr": lr, "weight_decay": weight_decay})

    @classmethod
    def from_pretrained(
        cls,
        source: str | os.PathLike[str],
        model: nn.Module,
        example_input: Tensor | tuple[Any, ...] | None = None,
        **options: Any,
    ) -> UNFOptimizer:
        """Load a trained rule.

        Args:
            source: Name of a shipped rule, a folder, or a Hugging Face hub id; see
                [load_release][amortopt.load_release].
            model: As for the constructor.
            example_input: As for the constructor.
            **options: As for the constructor, without ``rule``.

        Raises:
            FileNotFoundError: No such rule, or one of its files is missing.
            ValueError: A file was altered or is no rule's, or what the constructor raises.
        """
        if "rule" in options:
            raise ValueError(
                f"rule: got {options['rule']!r} beside the source {source!r}, expected one; pass it as "
                "the source, or to UNFOptimizer(model, x, rule=...)"
            )
        return cls(model, example_input, rule=read_rule(source), **options)

    @classmethod
    def factory(
        cls, model: nn.Module, example_input: Tensor | tuple[Any, ...] | None = None, **options: Any
    ) -> Callable[..., UNFOptimizer]:
        """What trainers expect that make an optimizer from parameters: Hugging Face's, skorch, hydra.

        Args:
            model: As for the constructor.
            example_input: As for the constructor.
            **options: As for the constructor.

        Returns:
            A function of ``model.parameters()``, ``model.named_parameters()`` or a list of groups, and of
            further options such as ``lr``.

        Examples:
            >>> import torch, amortopt
            >>> net = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Tanh(), torch.nn.Linear(3, 2))
            >>> optimizer_class = amortopt.UNFOptimizer.factory(net, torch.zeros(5, 4))
            >>> optimizer_class(net.parameters(), lr=0.05).param_groups[0]["lr"]
            0.05
        """

        def build(params: Iterable[Any], **further: Any) -> UNFOptimizer:
            members = list(params)
            grouped = bool(members) and all(isinstance(member, Mapping) for member in members)
            groups = members if grouped else [{"params": members}]
            return cls(model, example_input, param_groups=groups, **{**options, **further})

        return build

    @property
    def spec(self) -> SymmetrySpec:
        """Symmetry of the model."""
        return self._layout.spec

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Move further parameters of the model.

        Args:
            param_group: ``{"params": names, tensors or (name, tensor), "lr": ..., "weight_decay": ...}``.

        Raises:
            ValueError: A parameter is not the model's or is in a group already, or an option is out of its
                range.
            TypeError: The parameters have no order: a set.
        """
        members = []
        for member in members_of(param_group):
            p = member[1] if isinstance(member, tuple) else member
            p = self._params.get(name_in_model(p)) if isinstance(p, str) else p
            if not isinstance(p, Tensor) or p not in self._names:
                what = repr(member) if isinstance(member, str) else type(member).__name__
                raise ValueError(
                    f"param_groups: got {what}, which is no parameter of the model; expected names out of "
                    f"{', '.join(list(self._params)[:8])}, … or the tensors themselves"
                )
            members.append((member[0], p) if isinstance(member, tuple) else p)
        check_options(param_group.get("lr", self.defaults["lr"]), param_group.get("weight_decay", 0.0))
        super().add_param_group({**param_group, "params": members})
        grouped = self._grouped()
        self._blank -= {name for name, p in grouped.items() if p.is_floating_point()}
        if self._work is not None:
            self._work.state.read(self.state, grouped)

    def _grouped(self) -> Params:
        return {self._names[p]: p for group in self.param_groups for p in group["params"]}

    @overload
    def step(self, closure: None = ...) -> None: ...
    @overload
    def step(self, closure: Callable[[], Any]) -> Any: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step.

        Args:
            closure: Computes the loss and its gradients anew. What it returns is not looked at, so None will
                do.

        Returns:
            What the closure returned; None without one.

        Raises:
            ValueError: A gradient is sparse, parameters were moved to several devices, or, with
                ``nonfinite="raise"``, gradients, weights or the update are not finite; or a group's lr or
                weight_decay is not, or is negative.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        gradients: Params = {}  # of the parameters that are to be moved
        for p in (p for group in self.param_groups for p in group["params"]):
            if p.grad is not None and p.requires_grad and p.numel():
                if p.grad.layout != torch.strided:
                    raise ValueError(
                        f"gradients: got a sparse one for {self._names[p]!r}, expected dense ones; use "
                        "nn.Embedding(sparse=False)"
                    )
                gradients[self._names[p]] = p.grad
        if not gradients:
            return loss
        rates = [step_options(i, group) for i, group in enumerate(self.param_groups)]
        work = self._prepared()
        grouped = self._grouped()
        work.state.read(self.state, grouped)
        if not work.gather(self._params, gradients, grouped, self._blank):
            self._skip(nonfinite_message(gradients, self._params))
            return loss
        update = work.compute()
        # Weights after the step are at most |1 - lr decay| max |W| + lr ||u||.
        norm, largest = math.sqrt(float(torch.dot(update, update))), float(work.weights.abs().max())
        if not all(lr * norm + abs(1 - lr * decay) * largest < _LARGEST for lr, decay in rates):
            self._skip(nonfinite_message({}, self._params))
            return loss
        self._skipped_in_a_row = 0
        updates = self._layout.unpack(update)
        for group, (lr, decay) in zip(self.param_groups, rates, strict=True):
            moved = [(p, updates[self._names[p]]) for p in group["params"] if self._names[p] in gradients]
            move(moved, lr, decay)
        return loss

    def _prepared(self) -> Workspace:
        """State and buffers, on the device that the model is on now."""
        devices = {p.device for p in self._params.values()}
        if len(devices) > 1:
            raise ValueError(
                f"model: got parameters on {', '.join(sorted(map(str, devices)))}, expected one device"
            )
        (device,) = devices
        if self._work is None or self._work.weights.device != device:
            self._work = Workspace(self._rule.to(device), self._layout.to(device), self.state_dtype)
            self._work.state.read(self.state, self._grouped())
        return self._work

    def _skip(self, message: str) -> None:
        """Count a step that is left out, or raise."""
        if self.nonfinite == "raise":
            raise ValueError(message)
        self.skipped += 1
        self._skipped_in_a_row += 1
        if self._skipped_in_a_row == (1 if message.startswith("weights") else _SKIPPED_IN_A_ROW):
            warnings.warn(
                f"UNFOptimizer: {self._skipped_in_a_row} steps in a row skipped; {message}",
                RuntimeWarning,
                stacklevel=5,
            )

    def state_dict(self) -> dict[str, Any]:
        """State, options of the groups, and what identifies the model and the rule, for ``torch.save``.

        Returns:
            What ``torch.optim`` returns, float32 per parameter whatever its dtype, and an entry
            ``"amortopt"``; ``torch.load(weights_only=True)`` reads it. Tensors are the state's, not copies.
        """
        return {**super().state_dict(), "amortopt": self._header()}

    def _header(self) -> dict[str, Any]:
        """What identifies rule and model, in types that ``torch.load(weights_only=True)`` reads."""
        return {
            "format": FORMAT,
            "rule": self._digest,
            "shapes": {name: list(p.shape) for name, p in self._params.items()},
            "groups": [[self._names[p] for p in group["params"]] for group in self.param_groups],
            "skipped": self.skipped,
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Continue, bit for bit, from where ``state_dict`` was taken.

        Args:
            state_dict: From an optimizer with the same rule, for the same model, with the same groups. The
                entry ``"amortopt"`` may be missing, as tools that regroup state dicts drop it; then only
                names and shapes of the state are checked.

        Raises:
            ValueError: It is of another optimizer, rule, model or grouping, or was altered; nothing was
                changed.
        """
        if not isinstance(state_dict, Mapping):
            raise ValueError(
                f"state_dict: got {type(state_dict).__name__}, expected the dict that state_dict() returned"
            )
        loaded: dict[str, Any] = {}

        def check(_: torch.optim.Optimizer, state_dict: dict[str, Any]) -> None:
            entries = (self._rule.state_sizes, self._rule.shared_entries)
            state = check_state_dict(state_dict, self._header(), *entries)
            loaded.update(state_dict, state=state)

        def restore(_: torch.optim.Optimizer) -> None:
            # torch.optim has rounded the state to the parameters' dtypes: put the checked one in its place.
            params = [p for group in self.param_groups for p in group["params"]]
            for i, entry in loaded["state"].items():
                self.state[params[i]].update(entry)
            self.skipped = loaded.get("amortopt", {}).get("skipped", self.skipped)
            self._work = None
            if self.state:
                self._prepared()

        # Hooks of the user's: those before have edited what is checked; those after see what was restored.
        handles = [
            self.register_load_state_dict_pre_hook(check),
            self.register_load_state_dict_post_hook(restore, prepend=True),
        ]
        try:
            super().load_state_dict(dict(state_dict))
        finally:
            for handle in handles:
                handle.remove()

    def __getstate__(self) -> dict[str, Any]:
        kept = ("nonfinite", "state_dtype", "skipped", "_params", "_layout", "_rule", "_digest", "_blank")
        return super().__getstate__() | {key: self.__dict__[key] for key in kept}

    def __setstate__(self, state: dict[str, Any]) -> None:
        if "_params" in state:  # a copy; otherwise it is torch.optim's load_state_dict
            self._names = {p: name for name, p in state["_params"].items()}
            self._work, self._skipped_in_a_row = None, 0
            # Views of one flat vector become tensors of their own, which the next step reads.
            values = {p: {k: v.clone() for k, v in entry.items()} for p, entry in state["state"].items()}
            state = {**state, "state": defaultdict(dict, values)}
        super().__setstate__(state)
