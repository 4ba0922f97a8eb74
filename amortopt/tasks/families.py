"""Families of base networks: an architecture with its widths and activation, as ordinary ``nn.Module``s."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeAlias, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from amortopt._types import Params
from amortopt.functional.many import elementwise
from amortopt.functional.networks import params_of, stack
from amortopt.system.registry import Registry, describe

F = TypeVar("F", bound="type[Family]")
Activation: TypeAlias = Literal["tanh", "relu", "sin", "gelu", "leaky_relu", "identity"]


@elementwise
class Sine(nn.Module):
    r"""Elementwise :math:`\sin(\omega_0 x)`, the activation of SIRENs.

    Args:
        w0: Angular frequency ω₀.
    """

    def __init__(self, w0: float = 1.0) -> None:
        super().__init__()
        self.w0 = w0

    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(x if self.w0 == 1 else self.w0 * x)

    def extra_repr(self) -> str:
        return f"w0={self.w0:g}"


ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "tanh": nn.Tanh,
    "relu": nn.ReLU,
    "sin": Sine,
    "gelu": nn.GELU,
    "leaky_relu": nn.LeakyReLU,
    "identity": nn.Identity,
}


class Family(ABC):
    """Base networks of one architecture; see [make_family][amortopt.tasks.make_family]."""

    name: ClassVar[str]
    """Name in the registry, see [make_family][amortopt.tasks.make_family]."""
    activation: str
    input_shape: tuple[int, ...]

    @abstractmethod
    def build(self) -> nn.Module:
        """A new network in eval mode, initialised by PyTorch's defaults from the global random state."""

    @abstractmethod
    def example_input(self) -> Tensor:
        """One input [1, *input_shape], for tracing."""

    def scales(self) -> dict[str, float]:
        """Parameter name -> its usual size, in units of 1 / sqrt(fan in), where that is far from 1.

        Metanets that learn weights learn them in these units.
        """
        return {}

    def to_config(self) -> dict[str, Any]:
        """JSON-able ``{"name": ..., **arguments}``; ``make_family(**config)`` makes the same family."""
        return describe(self)


FAMILIES: Registry[Family] = Registry("family")


def register_family(name: str) -> Callable[[F], F]:
    """Class decorator: make a family known to [make_family][amortopt.tasks.make_family] as ``name``."""
    return FAMILIES.register(name)


@register_family("mlp")
@dataclass(frozen=True)
class Mlp(Family):
    """Fully connected network: ``nn.Sequential`` of ``Linear`` and activation, names ``0.weight``, ...

    Attributes:
        activation: Key of ``ACTIVATIONS``; after every layer but the last.
        widths: Units of input, hidden layers and output.
        input_shape: Shape of one input; by default ``(widths[0],)``. If it has more axes, the network
            starts with ``nn.Flatten``.
    """

    activation: str = "tanh"
    widths: tuple[int, ...] = (40, 32, 32, 10)
    input_shape: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "widths", check_sizes("widths", self.widths, at_least=2))
        object.__setattr__(
            self, "input_shape", check_sizes("input_shape", self.input_shape or self.widths[:1])
        )
        check_activation(self.activation)
        if torch.Size(self.input_shape).numel() != self.widths[0]:
            raise ValueError(
                f"widths: got {self.widths[0]} input units, expected {torch.Size(self.input_shape).numel()} "
                f"for input_shape {self.input_shape}"
            )

    def example_input(self) -> Tensor:
        return torch.zeros(1, *self.input_shape)

    def build(self) -> nn.Module:
        layers: list[nn.Module] = [nn.Flatten()] if len(self.input_shape) > 1 else []
        for fan_in, fan_out in zip(self.widths[:-2], self.widths[1:-1], strict=True):
            layers += [nn.Linear(fan_in, fan_out), ACTIVATIONS[self.activation]()]
        return nn.Sequential(*layers, nn.Linear(self.widths[-2], self.widths[-1])).eval()


@register_family("siren")
@dataclass(frozen=True)
class Siren(Family):
    r"""Implicit representation of Sitzmann et al. 2020 (arXiv 2006.09661): linear layers and sines.

    An ``nn.Sequential`` of ``Linear`` and ``Sine``, names ``0.weight``, ... Weights start uniform in
    ±1 / fan in (first layer) and :math:`\pm\sqrt{6 / \text{fan in}} / \omega_0` (others), so that the inputs
    of every sine have a spread of about one; biases uniform in ±1 / sqrt(fan in).

    Attributes:
        activation: ``"sin"``, after every layer but the last.
        widths: Units of input (coordinates), hidden layers and output (such as grey levels).
        w0: Angular frequency ω₀ of all sines: the higher, the finer the detail that a fresh network shows.
    """

    activation: str = "sin"
    widths: tuple[int, ...] = (2, 48, 48, 1)
    w0: float = 30.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "widths", check_sizes("widths", self.widths, at_least=3))
        if self.activation != "sin":
            raise ValueError(
                f"activation: got {self.activation!r}, expected 'sin'; the family mlp has others"
            )
        if not 0 < self.w0 < math.inf:
            raise ValueError(f"w0: got {self.w0!r}, expected a positive angular frequency, such as 30")

    @property
    def input_shape(self) -> tuple[int, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.widths[:1]

    def example_input(self) -> Tensor:
        return torch.zeros(1, *self.input_shape)

    def scales(self) -> dict[str, float]:
        """1 / ω₀ where a sine follows: there the products of weight and ω₀ are of the usual size."""
        layers = range(0, 2 * len(self.widths) - 4, 2)
        return {f"{layer}.{kind}": 1 / self.w0 for layer in layers for kind in ("weight", "bias")}

    def build(self) -> nn.Module:
        layers: list[nn.Module] = []
        for fan_in, fan_out in zip(self.widths, self.widths[1:], strict=False):
            layer = nn.Linear(fan_in, fan_out)
            bound = math.sqrt(6 / fan_in) / self.w0 if layers else 1 / fan_in
            nn.init.uniform_(layer.weight, -bound, bound)
            layer.init_bound = bound  # pyright: ignore[reportArgumentType]
            layers += [layer, Sine(float(self.w0))]
        return nn.Sequential(*layers[:-1]).eval()


@register_family("cnn")
@dataclass(frozen=True)
class Cnn(Family):
    """Small CNN: strided convolutions with an activation each, global average pool, one ``Linear``.

    With the defaults, the Small CNN Zoo's shape (Unterthiner et al. 2020, arXiv 2002.11448) in 1-D.

    Attributes:
        activation: Key of ``ACTIVATIONS``; after every convolution.
        channels: Output channels of each convolution.
        input_shape: ``(channels, length)`` or ``(channels, height, width)``.
        num_classes: Output units.
        kernel_size: Kernel length along each spatial axis.
        stride: Stride along each spatial axis.
        padding: Zeros on both sides of each spatial axis.
    """

    activation: str = "tanh"
    channels: tuple[int, ...] = (16, 16, 16)
    input_shape: tuple[int, ...] = (1, 40)
    num_classes: int = 10
    kernel_size: int = 3
    stride: int = 2
    padding: int = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "channels", check_sizes("channels", self.channels))
        object.__setattr__(self, "input_shape", check_sizes("input_shape", self.input_shape, at_least=2))
        check_activation(self.activation)
        if len(self.input_shape) > 3:
            raise ValueError(
                f"input_shape: got {self.input_shape}, expected (channels, length) or "
                "(channels, height, width)"
            )

    def example_input(self) -> Tensor:
        return torch.zeros(1, *self.input_shape)

    def build(self) -> nn.Module:
        flat = len(self.input_shape) == 2
        conv = nn.Conv1d if flat else nn.Conv2d
        layers: list[nn.Module] = []
        fan_in = self.input_shape[0]
        for fan_out in self.channels:
            layers += [
                conv(fan_in, fan_out, self.kernel_size, stride=self.stride, padding=self.padding),
                ACTIVATIONS[self.activation](),
            ]
            fan_in = fan_out
        pool = nn.AdaptiveAvgPool1d(1) if flat else nn.AdaptiveAvgPool2d(1)
        return nn.Sequential(*layers, pool, nn.Flatten(), nn.Linear(fan_in, self.num_classes)).eval()


def family_names() -> list[str]:
    """Names that [make_family][amortopt.tasks.make_family] knows, sorted."""
    return FAMILIES.names()


def make_family(name: str, **kwargs: Any) -> Family:
    """Make a family of base networks by name.

    Args:
        name: One of [family_names][amortopt.tasks.family_names], such as ``"mlp"``.
        **kwargs: Fields of the family's class, such as [Mlp][amortopt.tasks.Mlp]; lists are taken as tuples.

    Raises:
        ValueError: If there is no such family, it has no such argument, or an argument's value does not fit.

    Examples:
        >>> make_family("mlp", activation="relu", widths=(40, 8, 10)).build()
        Sequential(
          (0): Linear(in_features=40, out_features=8, bias=True)
          (1): ReLU()
          (2): Linear(in_features=8, out_features=10, bias=True)
        )
    """
    return FAMILIES.make(name, **kwargs)


def family_from(config: Mapping[str, Any]) -> Family:
    """A family from ``{"name": ..., **arguments}``, as `Family.to_config` gives it.

    Raises:
        ValueError: It is no such mapping, or what [make_family][amortopt.tasks.make_family] raises.
    """
    if not isinstance(config, Mapping) or not isinstance(config.get("name"), str):
        raise ValueError(
            f"family: got {config!r}, expected a mapping with a name: {', '.join(FAMILIES.names())}"
        )
    return make_family(**config)


def init_many(
    build: Callable[[], nn.Module], seeds: Iterable[int], init_scale: float | Iterable[float] = 1.0
) -> Params:
    r"""Initial params of many networks, each a function of its own seed alone.

    Weights and biases of linear and convolutional layers are uniform in
    :math:`\pm \text{init\_scale} / \sqrt{\text{fan\_in}}`, embeddings normal with standard deviation
    init_scale (PyTorch's defaults at scale 1); other parameters keep the values that ``build`` gives them.
    A layer with an attribute ``init_bound`` has this bound at scale 1 for its weights instead. The global
    random state is left as it was.

    Args:
        build: Makes one network, such as ``family.build``.
        seeds: One seed per network.
        init_scale: Factor on the draws (unitless): one for all networks or one per network.

    Returns:
        Params with tensors [B, ...], float32, on the CPU.

    Raises:
        ValueError: If there are no seeds, or not as many scales as seeds.
    """
    seeds = [int(s) for s in seeds]
    scales = [float(init_scale)] * len(seeds) if isinstance(init_scale, int | float) else list(init_scale)
    if not seeds or len(scales) != len(seeds):
        raise ValueError(
            f"init_scale: got {len(scales)} scales for {len(seeds)} seeds, expected at least one seed "
            "and one scale for each, or one scale for all"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = build()
    start = params_of(module)
    bounds: dict[str, float] = {}  # 1/sqrt(fan_in)
    normal: list[str] = []
    for path, layer in module.named_modules():
        if isinstance(layer, nn.Embedding):
            normal.append(f"{path}.weight")
        if isinstance(layer, nn.Linear | _ConvNd):
            bound = float(layer.weight[0].numel()) ** -0.5
            bounds |= {name: bound for name, _ in layer.named_parameters(path, recurse=False)}
            if hasattr(layer, "init_bound"):
                bounds[f"{path}.weight"] = float(layer.init_bound)  # pyright: ignore[reportArgumentType]
    sizes = [start[name].numel() for name in (*bounds, *normal)]
    uniform = sum(sizes[: len(bounds)])
    generator = torch.Generator()

    def draw(seed: int) -> Tensor:
        generator.manual_seed(seed)
        flat = 2 * torch.rand(uniform, generator=generator) - 1
        return torch.cat([flat, torch.randn(sum(sizes) - uniform, generator=generator)]) if normal else flat

    # One flat draw per network: only the generator is sequential, the rest is stacked.
    flat = torch.stack([draw(s) for s in seeds]) * torch.tensor([float(s) for s in scales]).unsqueeze(1)
    drawn = dict(zip((*bounds, *normal), flat.split(sizes, dim=1), strict=True))
    params = stack([start] * len(seeds))
    return {
        name: bounds.get(name, 1.0) * drawn[name].reshape(value.shape) if name in drawn else value
        for name, value in params.items()
    }


def check_sizes(name: str, value: Iterable[int], at_least: int = 1) -> tuple[int, ...]:
    sizes = tuple(value)
    if len(sizes) < at_least or not all(isinstance(s, int) and s > 0 for s in sizes):
        raise ValueError(f"{name}: got {sizes}, expected at least {at_least} positive integer(s)")
    return sizes


def check_activation(activation: str) -> None:
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation: got {activation!r}, expected one of {', '.join(ACTIVATIONS)}")
