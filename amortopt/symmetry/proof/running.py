"""Running a network in float64, deterministic and without side effects, at its weights and at moved ones."""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn
from torch._ops import HigherOrderOperator
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from amortopt._types import Params
from amortopt.functional.networks import shared_slices
from amortopt.symmetry.action import Element, act, act_on_some
from amortopt.symmetry.inputs import Inputs, apart, outputs_of
from amortopt.system.threads import one_at_a_time

if TYPE_CHECKING:
    from amortopt.symmetry.spec import SymmetrySpec

_aten = torch.ops.aten
_REGISTERED = ("_parameters", "_buffers", "_modules")
_LOWER = (torch.float32, torch.float16, torch.bfloat16)


class Runner:
    """A network as a function of its parameters and buffers, deterministic in training mode too.

    Random numbers are replaced by their expectation: dropout and stochastic depth become the identity. In
    float64 nothing is rounded: casts of the network to a smaller type are left out.

    Args:
        module: The network; every run copies it, so that a forward that stores something leaves no trace.
        example_input: What its forward takes, as for [extract][amortopt.symmetry.extract]. Integers stay
            integers.
        dtype: Type to compute in.

    Attributes:
        random: Names of operations whose random numbers were replaced by their mean in any run so far,
            the dropout of training mode aside.
        drawn: Whether to draw them, from a fixed seed, instead.
    """

    def __init__(
        self, module: nn.Module, example_input: Any | Inputs, *, dtype: torch.dtype = torch.float64
    ) -> None:
        self.module, self.dtype = module, dtype
        inputs = example_input if isinstance(example_input, Inputs) else Inputs.of(example_input, module)
        self.inputs = inputs.map(self._cast)
        self.random: set[str] = set()
        self.drawn = False
        self.params = {name: self._cast(p.detach()) for name, p in module.named_parameters()}
        self.buffers = {name: self._cast(b.detach()) for name, b in module.named_buffers()}

    def _cast(self, tensor: Tensor) -> Tensor:
        if tensor.is_complex() and self.dtype == torch.float64:
            return tensor.to(torch.complex128)
        return tensor.to(self.dtype) if tensor.is_floating_point() else tensor

    @property
    def device(self) -> torch.device:
        """Where the parameters are; the CPU without any."""
        return next((p.device for p in self.params.values()), torch.device("cpu"))

    @one_at_a_time
    def run(
        self, weights: Params, *, training: bool = False, grad: bool = False
    ) -> tuple[list[Tensor], Params]:
        """Run the network once.

        Args:
            weights: Name -> parameter or buffer to use instead of the network's; not modified.
            training: Whether to run in training mode.
            grad: Whether the outputs are to be differentiated with respect to the weights.

        Returns:
            Every tensor among the outputs, and the buffers as the run left them.
        """
        buffers = {name: weights.get(name, buffer).clone() for name, buffer in self.buffers.items()}
        inputs = self.inputs.map(torch.clone)
        module = apart(self.module)
        python, array = random.getstate(), np.random.get_state()
        fast = torch.backends.mha.get_fastpath_enabled()
        devices = {t.device for t in self.params.values() if t.device.type == "cuda"}
        with (
            torch.set_grad_enabled(grad),
            restored(module),
            shared_slices(module),
            torch.random.fork_rng(devices=list(devices)),
            Expectation(self.dtype, self.random, self.drawn, training),
        ):
            try:
                # In eval mode without gradients PyTorch's transformer layers would be one fused operation.
                torch.backends.mha.set_fastpath_enabled(False)
                # The same random numbers in every run, also those that a network draws outside of torch.
                torch.manual_seed(0)
                random.seed(0)
                np.random.seed(0)
                module.train(training)
                # A forward may write to parameters; those that are differentiated are no others' tensors.
                fixed = {n: p.clone() for n, p in (self.params | weights).items() if not p.requires_grad}
                state = {**weights, **fixed, **buffers}
                output = functional_call(module, state, inputs.args, inputs.kwargs)
                return [t.clone() for t in outputs_of(output)], buffers
            finally:
                random.setstate(python)
                np.random.set_state(array)
                torch.backends.mha.set_fastpath_enabled(fast)

    def updated(self) -> list[str]:
        """The floating buffers that training mode updates; none if the network does not run in it."""
        if not any(b.is_floating_point() for b in self.buffers.values()):
            return []
        try:
            _, after = self.run({}, training=True)
        except Exception:
            return []
        return [n for n, b in self.buffers.items() if b.is_floating_point() and not after[n].equal(b)]


def generic(runner: Runner, statistics: Sequence[str], noise: float, seed: int = 0) -> Runner:
    """The same network at weights and inputs in general position.

    A network has symmetries at its initialisation that it loses in training: zero biases, unit gains and
    running statistics can be permuted at will. Inputs whose entries are all equal become random.

    Args:
        runner: Not modified.
        statistics: Buffers to disturb besides those that training mode updates; other buffers stay.
        noise: Standard deviation of the noise added, relative to each parameter's root mean square.
        seed: Of the noise. Other than 0, weights of the same size are drawn anew, and floating inputs are
            disturbed too.

    Returns:
        Another runner.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=generator, dtype=torch.float64).to(like)

    def fill(x: Tensor) -> Tensor:
        if not x.is_floating_point() or not x.numel():
            return x
        first = x.flatten()[0]
        if bool((x == first).all()):
            # Equal entries hide what permutes them; zeros hide everything.
            return normal(x) * (first.abs() if first else 1) + x
        return x if seed == 0 else normal(x) * x.std(correction=0) + x

    def disturbed(p: Tensor) -> Tensor:
        size = float(torch.linalg.vector_norm(p)) / math.sqrt(max(p.numel(), 1))
        # A bias or the gain of a branch that starts near zero gets a size at which it matters.
        size = size if size > 1e-3 else 0.1
        return normal(p).mul_(size) if seed else normal(p).mul_(noise * size).add_(p)

    other = copy.copy(runner)
    other.inputs = runner.inputs.map(fill)
    if noise == 0 and seed == 0:
        return other
    other.params = {n: disturbed(p) if p.is_floating_point() else p for n, p in runner.params.items()}
    moving = {*statistics, *other.updated()}
    other.buffers = {
        # A variance stays positive.
        n: b if n not in moving else b * torch.exp(0.5 * normal(b)) if (b > 0).all() else disturbed(b)
        for n, b in runner.buffers.items()
    }
    return other


def relative(got: Tensor, expected: Tensor) -> float:
    """Norm of the difference over the norm of ``expected``; for integers the share of entries that differ."""
    if got.shape != expected.shape:
        return float("inf")
    if not (expected.is_floating_point() or expected.is_complex()):
        return float((got != expected).double().mean()) if got.numel() else 0.0
    if expected.numel() and bool(expected.isnan().all()):
        return math.nan
    # Rows of attention that see nothing are NaN before and after.
    differs = (got != expected) & ~(got.isnan() & expected.isnan())
    if not bool(differs.any()):
        return 0.0
    # Huge constants that agree to the bit, infinities too, as masked scores have them, would hide all else.
    usual = expected[differs].abs().nanmedian()
    counts = differs | (expected.abs() <= 1e4 * usual) | (usual < 1e-6)
    difference = torch.linalg.vector_norm(torch.where(differs, got - expected, 0))
    size = torch.linalg.vector_norm(torch.where(counts & expected.isfinite(), expected, 0))
    return float(difference / size) if size > 0 else float(difference)


def worst(got: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """The largest [relative][amortopt.symmetry.proof.running.relative] difference; NaN if one is NaN."""
    errors = [relative(a, b) for a, b in zip(got, expected, strict=True)]
    return next((error for error in errors if error != error), max(errors, default=0.0))


@contextmanager
def restored(module: nn.Module) -> Iterator[None]:
    """Afterwards every submodule has the attributes it had: its mode, and tensors that a forward stores."""
    kept = [
        (part, dict(part.__dict__), [dict(part.__dict__[name]) for name in _REGISTERED])
        for part in module.modules()
        if not isinstance(part, torch.jit.ScriptModule)  # its attributes lie outside of Python
    ]
    try:
        yield
    finally:
        for part, attributes, registered in kept:
            part.__dict__.clear()
            part.__dict__.update(attributes)
            for name, members in zip(_REGISTERED, registered, strict=True):
                part.__dict__[name].clear()
                part.__dict__[name].update(members)


Mode: TypeAlias = Literal["eval", "training"]

MODES: tuple[Mode, ...] = ("eval", "training")


@dataclass
class Comparison:
    """Outputs of a network before and after its weights are moved, mode by mode.

    Attributes:
        spec: The claimed symmetry.
        runner: The network.
        modes: What to run; a mode other than the first that cannot run is dropped with a note.
        errors: Mode -> largest difference so far.
        statistics: Largest difference of an updated buffer so far.
        notes: What was dropped.
    """

    spec: SymmetrySpec
    runner: Runner
    modes: Sequence[Mode]
    errors: dict[str, float] = field(default_factory=dict)
    statistics: float | None = None
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        state = {**self.runner.params, **self.runner.buffers}
        self.weights = {name: state[name] for name in (*self.spec.params, *self.spec.buffers)}
        self.before: dict[Mode, tuple[list[Tensor], Params]] = {}
        for mode in self.modes:
            try:
                self.before[mode] = self.runner.run({}, training=mode == "training")
            except Exception as error:
                line = " ".join(str(error).split()) or type(error).__name__
                if mode == "eval" or len(self.modes) == 1:
                    raise ValueError(
                        f"model: does not run on the example input in float64 and {mode} mode: {line[:300]}"
                    ) from error
                self.notes.append(f"{mode} mode left out, it does not run on this input: {line}")
        self.nonzero = any(bool(t.any()) for outputs, _ in self.before.values() for t in outputs)
        if not self.nonzero:
            self.notes.append("there is no output that is not zero, which shows nothing; try another input")

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return self.runner.device

    @property
    def finite(self) -> bool:
        """Whether all outputs are finite."""
        return all(bool(t.isfinite().all()) for outputs, _ in self.before.values() for t in outputs)

    @property
    def undefined(self) -> bool:
        """Whether an output is NaN all over."""
        outputs = [t for outputs, _ in self.before.values() for t in outputs if t.is_floating_point()]
        return any(t.numel() > 0 and bool(t.isnan().all()) for t in outputs)

    @cached_property
    def different(self) -> dict[Mode, tuple[list[Tensor], Params]]:
        """``before`` without modes whose outputs equal those of another mode bit by bit and update no buffer.

        With weights in general position that is no coincidence, so half of the runs can be saved.
        """
        modes: dict[Mode, tuple[list[Tensor], Params]] = {}
        for mode, (outputs, buffers) in self.before.items():
            still = all(buffers[name].equal(b) for name, b in self.runner.buffers.items())
            if not still or not any(
                len(outputs) == len(others) and all(x.equal(y) for x, y in zip(outputs, others, strict=True))
                for others, _ in modes.values()
            ):
                modes[mode] = (outputs, buffers)
        return modes

    def drawn(self) -> Comparison:
        """The same with random numbers drawn from a seed, not replaced by their means."""
        runner = copy.copy(self.runner)
        runner.drawn = True
        return Comparison(self.spec, runner, [*self.before])

    def try_element(self, g: Element) -> None:
        """Act with an element of the spec; ``errors`` and ``statistics`` keep the largest differences."""
        if not self.nonzero:
            return
        moved = act(self.spec, g, self.weights)
        for mode, (expected, buffers) in self.different.items():
            got, after = self.runner.run(moved, training=mode == "training")
            self.errors[mode] = _max(self.errors.get(mode, 0.0), worst(got, expected))
            updated = [n for n, b in buffers.items() if not b.equal(self.runner.buffers[n])]
            if mode == "training" and updated:
                named = {name: buffers[name] for name in self.spec.buffers}
                expected_buffers = {**buffers, **act_on_some(self.spec, g, named)}
                error = worst([after[n] for n in updated], [expected_buffers[n] for n in updated])
                self.statistics = _max(self.statistics or 0.0, error)
        for mode in self.before.keys() - self.different.keys():
            self.errors[mode] = self.errors[next(iter(self.different))]

    def try_outside(self, g: Element, names: Sequence[str], rtol: float) -> float | None:
        """Act on ``names`` with an element outside the spec.

        Returns:
            The largest difference, up to the first mode where it exceeds ``rtol``; None if no weight changed.
        """
        weights = {name: self.weights[name] for name in names}
        moved = act_on_some(self.spec, g, weights)
        if all(moved[name].equal(weights[name]) for name in names):
            return None
        error = 0.0
        for mode, (expected, _) in self.different.items():
            try:
                got, _ = self.runner.run(moved, training=mode == "training")
            except Exception:
                return math.inf  # a network that checks its values refuses these
            error = _max(error, worst(got, expected))
            if not error <= rtol:
                break
        return error


def _max(a: float, b: float) -> float:
    return b if math.isnan(b) or b > a else a


def _leaky(
    x: Tensor, noise: Tensor, lower: float = 1 / 8, upper: float = 1 / 3, *_: Any, **__: Any
) -> Tensor:
    return torch.where(x >= 0, x, x * (lower + upper) / 2)


_EXPECTATIONS: Mapping[Any, Callable[..., Any]] = {
    _aten.bernoulli_.float: lambda x, p=0.5, **_: x.fill_(p),
    _aten.bernoulli_.Tensor: lambda x, p, **_: x.copy_(p),
    _aten.bernoulli.default: lambda x, **_: x.clone(),
    _aten.bernoulli.p: lambda x, p, **_: torch.full_like(x, p),
    _aten.native_dropout.default: lambda x, p, train: (x.clone(), torch.ones_like(x, dtype=torch.bool)),
    _aten.uniform_.default: lambda x, low=0.0, high=1.0, **_: x.fill_((low + high) / 2),
    _aten.normal_.default: lambda x, mean=0.0, std=1.0, **_: x.fill_(mean),
    _aten.exponential_.default: lambda x, rate=1.0, **_: x.fill_(1 / rate),
    _aten.rand.default: lambda size, **kwargs: torch.full(size, 0.5, **kwargs),
    _aten.rand.generator: lambda size, *, generator, **kwargs: torch.full(size, 0.5, **kwargs),
    _aten.randn.default: lambda size, **kwargs: torch.zeros(size, **kwargs),
    _aten.randn.generator: lambda size, *, generator, **kwargs: torch.zeros(size, **kwargs),
    _aten.rand_like.default: lambda x, **kwargs: torch.full_like(x, 0.5, **kwargs),
    _aten.randn_like.default: lambda x, **kwargs: torch.zeros_like(x, **kwargs),
    _aten.normal.Tensor_float: lambda mean, *_, **__: mean.clone(),
    _aten.normal.Tensor_Tensor: lambda mean, *_, **__: mean.clone(),
    _aten.rrelu_with_noise.default: _leaky,
    _aten.rrelu_with_noise_.default: lambda x, *args, **kwargs: x.copy_(_leaky(x, *args, **kwargs)),
}


def _grouped_mm(
    x: Tensor, mat2: Tensor, offs: Tensor | None = None, bias: Tensor | None = None, *_: Any
) -> Tensor:
    """Rows offs[e - 1]:offs[e] of x times mat2[e]: what the fused operation computes, in any type."""
    if offs is None or x.ndim == 3:
        return x @ mat2 if bias is None else x @ mat2 + bias[:, None]
    stops = offs.tolist()
    parts = [
        x[start:stop] @ mat2[e] + (0 if bias is None else bias[e])
        for e, (start, stop) in enumerate(zip([0, *stops], stops, strict=False))
    ]
    # Rows behind the last expert's are not defined.
    return torch.cat([*parts, x.new_zeros(max(len(x) - stops[-1], 0), mat2.shape[-1])])


_EQUIVALENT: Mapping[str, Callable[..., Any]] = {
    "aten._grouped_mm.default": _grouped_mm,
    "transformers.grouped_mm_fallback.default": _grouped_mm,
}
"""Operations that cannot run in float64 -> functions that compute the same and can."""
_DROPOUT = ("bernoulli", "native_dropout", "rrelu_with_noise")
_LOWER_COMPLEX = (torch.complex64, torch.complex32)


class Expectation(TorchDispatchMode):
    """Replaces random numbers by their expectations; under float64 leaves out casts to smaller types."""

    supports_higher_order_operators = True

    def __init__(self, dtype: torch.dtype, replaced: set[str], drawn: bool, training: bool) -> None:
        super().__init__()
        self.exact, self.replaced, self.drawn = dtype == torch.float64, replaced, drawn
        # In training mode dropout stands for its mean, and is no reason for a note.
        self.usual = _DROPOUT if training else ()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if isinstance(func, HigherOrderOperator):
            return func(*args, **kwargs)  # a branch or a loop; inside it nothing is replaced
        # Fused attention and recurrent kernels drop units by themselves.
        for index, argument in enumerate(func._schema.arguments):
            if argument.name not in ("dropout_p", "dropout"):
                continue
            if not self.usual and (args[index] if index < len(args) else kwargs.get(argument.name)):
                self.replaced.add("dropout")
                if self.drawn:
                    continue
            if index < len(args):
                args = (*args[:index], 0.0, *args[index + 1 :])
            elif argument.name in kwargs:
                kwargs[argument.name] = 0.0
        function = _EXPECTATIONS.get(func, func)
        name = str(func).removeprefix("aten.").split(".")[0].removesuffix("_")
        if function is not func and name not in self.usual:
            self.replaced.add(name)
            function = func if self.drawn else function
        if self.exact:
            function = _EQUIVALENT.get(str(func), function)
        aliases = func.is_view or func._schema.is_mutable
        if not self.exact or aliases:
            return function(*args, **kwargs)
        if kwargs.get("dtype") in _LOWER:
            kwargs["dtype"] = torch.float64
        if kwargs.get("dtype") in _LOWER_COMPLEX:
            kwargs["dtype"] = torch.complex128
        args, named = tree_map_only(Tensor, _raised, args), tree_map_only(Tensor, _raised, kwargs)
        return tree_map_only(Tensor, _raised, function(*args, **named))


def _raised(tensor: Tensor) -> Tensor:
    if tensor.dtype in _LOWER_COMPLEX:
        return tensor.to(torch.complex128)
    return tensor.double() if tensor.dtype in _LOWER else tensor
