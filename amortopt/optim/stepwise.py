"""A learned update rule as a ``torch.optim.Optimizer``."""

from __future__ import annotations

import copy
import math
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, get_args, overload

import torch
from torch import Tensor, nn

from amortopt.metanets.update_rule.features import RuleState
from amortopt.metanets.update_rule.inference import InferenceRule
from amortopt.metanets.update_rule.layout import UpdateLayout
from amortopt.metanets.update_rule.rule import UpdateRule
from amortopt.optim.flat import Places, Spread
from amortopt.optim.resume import as_state_dict, check_state_dict, header, rule_digest, state_axes
from amortopt.optim.whole import (
    as_groups,
    check_options,
    members_of,
    nonfinite_message,
    own_name,
    read_parameters,
    read_rule,
    step_options,
    symmetry_of,
    unwrapped,
    warn_stuck,
)
from amortopt.symmetry import SymmetrySpec

Nonfinite = Literal["skip", "raise"]
_LARGEST = torch.finfo(torch.float32).max
_EXACT = (torch.float32, torch.float64)  # dtypes that an update is added to as they are


class UNFOptimizer(torch.optim.Optimizer):
    r"""Steps that a metanet computes from weights, gradients and their history, for any architecture.

    .. math:: W \leftarrow (1 - \eta\lambda) W - \eta\, u(W, \nabla, \text{history}, t)

    with the learned update u (Zhou, Finn and Harrison 2024, sec. 4.3; see
    :class:`amortopt.metanets.UpdateRule`),
    the learning rate η, a factor on what was learned, and decoupled weight decay λ. The rule hears of all
    parameters of the model at once, whichever group they are in. It and its state are float32, on the model's
    device; each parameter is rounded to its own dtype at the end.

    Parameters that are in no group, do not require gradients or have ``grad=None`` stay as they are; to the
    rule their gradients are zero. Elements whose gradient is zero, in a tensor that has one, may be moved by
    the rule. A step in which no parameter has a gradient does nothing.

    Args:
        model: The network; compiled or within ``DistributedDataParallel`` is the same as plain.
        example_input: What its forward takes, or a tuple of that, on its device: the model is traced once to
            find its symmetry. Not needed with ``symmetry``.
        symmetry: What may be permuted in the model, from :func:`amortopt.symmetry.extract`.
        rule: The update rule, which is copied; or where to load it from, see :func:`amortopt.load_release`.
        param_groups: Groups with options of their own: ``{"params": [names or tensors], "lr": ...}``. What is
            in no group stays as it is. By default all parameters are one group.
        lr: Learning rate η > 0, a factor: 1 is what the rule was trained for. A scheduler may set it to 0.
        weight_decay: λ >= 0, per step and unit of η.
        nonfinite: What to do where gradients or weights are NaN, infinite or so large that their squares are:
            ``"skip"`` the step and count it in :attr:`skipped`, or ``"raise"`` a ``ValueError``. In both
            cases weights and state stay as they are. The same where the update is not finite, but then the
            state has heard of the gradients.

    Raises:
        ValueError: An argument is out of its range, the symmetry is not this model's, parameters are on
            several devices or no real numbers, or a group holds a tensor that is not the model's.

    Example:
        >>> import torch, amortopt
        >>> from amortopt.metanets import UpdateRule
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Tanh(), torch.nn.Linear(3, 2))
        >>> opt = amortopt.UNFOptimizer(net, torch.zeros(5, 4), rule=UpdateRule(), lr=0.5)
        >>> net(torch.ones(5, 4)).square().mean().backward()
        >>> opt.step()
        >>> opt.skipped
        0
    """

    _warned = False

    def __init__(
        self,
        model: nn.Module,
        example_input: Tensor | tuple[Any, ...] | None = None,
        *,
        symmetry: SymmetrySpec | None = None,
        rule: UpdateRule | str | os.PathLike[str] = "unf-small",
        param_groups: Iterable[Mapping[str, Any]] | None = None,
        lr: float = 1.0,
        weight_decay: float = 0.0,
        nonfinite: Nonfinite = "skip",
    ) -> None:
        if nonfinite not in get_args(Nonfinite):
            raise ValueError(f"nonfinite: got {nonfinite!r}, expected 'skip' or 'raise'")
        check_options(lr, weight_decay)
        base = unwrapped(model)
        self._params = read_parameters(base)
        self._names: dict[Tensor, str] = {p: name for name, p in self._params.items()}
        self._layout = UpdateLayout(
            symmetry_of(base, example_input, symmetry), {name: p.shape for name, p in self._params.items()}
        )
        rule = read_rule(rule)
        self._rule = copy.deepcopy(rule).float().requires_grad_(False).eval()
        self._digest = rule_digest(self._rule)
        self.nonfinite: Nonfinite = nonfinite
        self.skipped = 0
        self._flat: RuleState = {}
        self._work: _Work | None = None
        groups = [{"params": list(self._params.values())}] if param_groups is None else param_groups
        super().__init__(
            [{**group, "params": self._members(group)} for group in as_groups(groups)],
            {"lr": lr, "weight_decay": weight_decay},
        )

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
                :func:`amortopt.load_release`.
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

    @property
    def spec(self) -> SymmetrySpec:
        """Symmetry of the model."""
        return self._layout.spec

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Move further parameters of the model.

        Args:
            param_group: ``{"params": names or tensors, "lr": ..., "weight_decay": ...}``.

        Raises:
            ValueError: A parameter is not the model's or is in a group already, or an option is out of its
                range.
        """
        group = {**param_group, "params": self._members(param_group)}
        check_options(group.get("lr", self.defaults["lr"]), group.get("weight_decay", 0.0))
        super().add_param_group(group)
        if self._work is not None:
            self._show_state()

    def _members(self, group: Mapping[str, Any]) -> list[Tensor]:
        """The parameters that a group names."""
        found = []
        for member in members_of(group):
            member = member[1] if isinstance(member, tuple) else member
            p = self._params.get(own_name(member)) if isinstance(member, str) else member
            if not isinstance(p, Tensor) or p not in self._names:
                what = repr(member) if isinstance(member, str) else type(member).__name__
                raise ValueError(
                    f"param_groups: got {what}, which is no parameter of the model; expected names out of "
                    f"{', '.join(list(self._params)[:8])}, … or the tensors themselves"
                )
            found.append(p)
        return found

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
        gradients = self._gradients()
        if not gradients:
            return loss
        rates = [step_options(i, group) for i, group in enumerate(self.param_groups)]
        work = self._prepared()
        work.places.gather({name: p.detach() for name, p in self._params.items()}, work.weights)
        work.places.gather(gradients, work.gradients)
        if not work.finite():
            self._not_finite(gradients)
            return loss
        work.compute(self._flat)
        if not work.movable(rates):
            self._not_finite({})
            return loss
        for group, (lr, decay) in zip(self.param_groups, rates, strict=True):
            self._move(work, group["params"], lr, decay, gradients)
        return loss

    def _gradients(self) -> dict[str, Tensor]:
        """Gradients of what is to be moved."""
        found: dict[str, Tensor] = {}
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None or not p.requires_grad:
                    continue
                if p.grad.layout != torch.strided:
                    raise ValueError(
                        f"gradients: got a sparse one for {self._names[p]!r}, expected dense ones; use "
                        "nn.Embedding(sparse=False)"
                    )
                found[self._names[p]] = p.grad
        return found

    def _prepared(self) -> _Work:
        """State and workspace, on the device that the model is on now."""
        devices = {p.device for p in self._params.values()}
        if len(devices) > 1:
            raise ValueError(
                f"model: got parameters on {', '.join(sorted(map(str, devices)))}, expected one device"
            )
        (device,) = devices
        if self._work is None or self._work.weights.device != device:
            self._work = _Work(self._rule.to(device), self._layout.to(device))
            if self._flat:
                self._flat = {k: v if k == "step" else v.to(device) for k, v in self._flat.items()}
            else:
                self._flat = self._rule.init_state(self._layout, self._work.weights)
                self._flat["step"] = self._flat["step"].cpu()
            self._work.show(self._flat)
            self._show_state()
        return self._work

    def _show_state(self) -> None:
        """Let ``state[p]`` be the part of the flat state that is about p."""
        self.state: defaultdict[Tensor, Any] = defaultdict(dict)
        assert self._work is not None
        for p in (p for group in self.param_groups for p in group["params"]):
            name = self._names[p]
            shown = {key: spread.tensors[name] for key, spread in self._work.shown.items()}
            self.state[p] = {"step": self._flat["step"], **shown}

    def _move(
        self, work: _Work, params: list[Tensor], lr: float, decay: float, gradients: Mapping[str, Tensor]
    ) -> None:
        members = [(p, self._names[p]) for p in params]
        members = [(p, name) for p, name in members if name in gradients]
        exact = [(p, name) for p, name in members if p.dtype in _EXACT]
        rounded = [(p, name) for p, name in members if p.dtype not in _EXACT]
        for some, targets in (
            (exact, [p for p, _ in exact]),
            (rounded, [work.weight[name] for _, name in rounded]),
        ):
            if some:
                if decay:
                    torch._foreach_mul_(targets, 1 - lr * decay)  # pyright: ignore[reportPrivateImportUsage]
                torch._foreach_add_(targets, [work.update[name] for _, name in some], alpha=-lr)  # pyright: ignore[reportPrivateImportUsage]
        if rounded:
            torch._foreach_copy_([p for p, _ in rounded], [work.weight[name] for _, name in rounded])  # pyright: ignore[reportPrivateImportUsage]

    def _not_finite(self, gradients: Mapping[str, Tensor]) -> None:
        """Count a step that is left out, or raise; without gradients, it is the update that is not finite."""
        if self.nonfinite == "raise":
            raise ValueError(nonfinite_message(gradients, self._params))
        self.skipped += 1
        assert self._work is not None
        weights = self._work.weights
        if not self._warned and not math.isfinite(float(torch.dot(weights, weights))):
            self._warned = True
            warn_stuck()

    def state_dict(self) -> dict[str, Any]:
        """State, options of the groups, and what tells the model and the rule, for ``torch.save``.

        Returns:
            What ``torch.optim`` returns, float32 per parameter whatever its dtype, and an entry
            ``"amortopt"``; ``torch.load(weights_only=True)`` reads it. Tensors are its own, not copies.
        """
        names = [[self._names[p] for p in group["params"]] for group in self.param_groups]
        known = header(self._digest, self._layout, names, self.skipped)
        return {**super().state_dict(), "amortopt": known}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Continue, bit for bit, from where ``state_dict`` was taken.

        Args:
            state_dict: From an optimizer with the same rule, for the same model, with the same groups.

        Raises:
            ValueError: It is of another optimizer, rule, model or grouping, or was altered; nothing was
                changed.
        """
        loaded: dict[str, Any] = {}

        def check(_: torch.optim.Optimizer, given: dict[str, Any]) -> None:
            names = [[self._names[p] for p in group["params"]] for group in self.param_groups]
            check_state_dict(given, header(self._digest, self._layout, names, 0), state_axes(self._rule))
            loaded.update(given)

        # The last hook: it sees what hooks of the user's made of it.
        handle = self.register_load_state_dict_pre_hook(check)
        try:
            super().load_state_dict(as_state_dict(state_dict))
        finally:
            handle.remove()
        self.skipped = loaded["amortopt"]["skipped"]
        self._restore(loaded["state"])

    @torch.no_grad()
    def _restore(self, state: Mapping[int, Mapping[str, Tensor]]) -> None:
        """Write a state dict's tensors, in float32 unlike what torch.optim would do, into the flat state."""
        self.state = defaultdict(dict)
        self._flat, self._work = {}, None
        if not state:
            return
        names = [self._names[p] for group in self.param_groups for p in group["params"]]
        work = self._prepared()
        for key, spread in work.shown.items():
            spread.write({name: state[i][key] for i, name in enumerate(names)})
        self._flat["step"].copy_(next(iter(state.values()))["step"])

    def __getstate__(self) -> dict[str, Any]:
        kept = ("nonfinite", "skipped", "_params", "_layout", "_rule", "_digest", "_flat")
        return {"defaults": self.defaults, "param_groups": self.param_groups} | {
            key: self.__dict__[key] for key in kept
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__({"state": defaultdict(dict), **state})
        if "_params" not in state:
            return  # torch.optim's own load_state_dict
        self._names = {p: name for name, p in self._params.items()}
        self._work = None
        if self._flat:
            self._prepared()


class _Work:
    """Buffers that every step writes to, and their parts."""

    def __init__(self, rule: UpdateRule, layout: UpdateLayout) -> None:
        self.places = Places(layout)
        self._values = torch.zeros(2, layout.size, dtype=torch.float32, device=layout.device)
        self.weights, self.gradients = self._values
        self._infer = InferenceRule(rule, layout)
        self._spread = {
            "weight": Spread(self.places, self.weights),
            "update": Spread(self.places, self._infer.update),
        }
        self.weight, self.update = (self._spread[key].tensors for key in ("weight", "update"))
        self.shown: dict[str, Spread] = {}

    def show(self, state: RuleState) -> None:
        """Take the flat state apart."""
        self.shown = {key: Spread(self.places, value) for key, value in state.items() if key != "step"}

    def finite(self) -> bool:
        """Whether weights and gradients are finite, and their squares too."""
        return math.isfinite(
            float(torch.dot(self.weights, self.weights) + torch.dot(self.gradients, self.gradients))
        )

    def movable(self, rates: list[tuple[float, float]]) -> bool:
        """Whether the update is finite, and the weights after it."""
        flat = self._infer.update
        update, weight = math.sqrt(float(torch.dot(flat, flat))), self.weights.abs().max().item()
        return all(lr * update + abs(1 - lr * decay) * weight < _LARGEST for lr, decay in rates)

    def compute(self, state: RuleState) -> None:
        """Update and state after one more step."""
        with torch.autocast(self.weights.device.type, enabled=False):
            self._infer(self._values, state)
        for spread in (*self._spread.values(), *self.shown.values()):
            spread.refresh()
