"""The kinds of networks that read weights, and their registry."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, TypeVar

from torch import Tensor, nn

from amortopt._types import Params
from amortopt.metanets.conditions import CONDITIONS, Conditions
from amortopt.metanets.heads import make_head
from amortopt.symmetry import SymmetrySpec
from amortopt.symmetry.blocks import BlockView
from amortopt.system.registry import Registry

T = TypeVar("T", bound="type[Metanet] | type[Functional] | type[UpdateRule]")
_NONE = Conditions()


class Metanet(nn.Module, ABC):
    """From the params of many base networks to better ones, equivariant to the networks' symmetry.

    A final class takes ``spec`` and json-able keyword arguments, and hands both on to this constructor:
    ``super().__init__(spec, width=width, conditions=conditions)``.

    Args:
        spec: Symmetry of the family that the metanet is for.
        **config: All keyword arguments that the final class was called with; an untrained copy is
            ``make(self.name, spec, **config)``. ``conditions`` among them names what ``forward`` reads.

    Attributes:
        spec: Symmetry of the family.
        config: The keyword arguments.
        conditions: What ``forward`` reads beside the weights, of ``readable``.

    Raises:
        ValueError: An unknown condition.
    """

    name: ClassVar[str] = ""
    """Name in the registry, set by [register][amortopt.metanets.register]."""
    readable: ClassVar[frozenset[str]] = CONDITIONS - {"function"}
    """Conditions that a metanet of this class can be made with."""
    probes: Tensor | None
    """Inputs [n, *input_shape] at which it reads a network's function; None if it reads none."""

    def __init__(self, spec: SymmetrySpec, **config: Any) -> None:
        super().__init__()
        self.register_buffer("probes", None)
        self.spec = spec
        self.config = config
        self.conditions = frozenset(config.get("conditions", ()))
        if unknown := sorted(self.conditions - self.readable):
            raise ValueError(f"conditions: got {unknown}, expected some of {sorted(self.readable)}")

    @abstractmethod
    def forward(self, params: Params, conditions: Conditions = _NONE) -> Params:
        """Improve B base networks of one architecture.

        Args:
            params: The family spec's parameter names -> [B, ...]; hidden widths may differ from the spec's,
                sizes are read from the tensors.
            conditions: What ``conditions`` declares.

        Returns:
            New params: names, shapes and dtype of ``params``.
        """

    @abstractmethod
    def param_roles(self) -> dict[str, list[nn.Parameter]]:
        """Parameters that meta-training treats in a way of their own.

        Returns:
            ``"matrix"``: act as matrices, for optimizers such as Muon. ``"prototype"``: weights that are
            proposed to all networks alike, matrices too. ``"correction"``: what is added to them for each
            network. Parameters in none of these are scalars, vectors and embeddings.
        """


class Functional(nn.Module, ABC):
    """From the params of many base networks to numbers that do not change under the networks' symmetry.

    A final class takes ``spec``, ``head`` and json-able keyword arguments, and hands all on to this
    constructor: ``super().__init__(spec, head=head, width=width)``.

    Args:
        spec: Symmetry of the family that it is for.
        head: What the numbers mean: ``{"name": "classes", "count": 10}`` or ``{"name": "regression"}`` with
            the arguments of [Classes][amortopt.metanets.Classes] or
            [Regression][amortopt.metanets.Regression].
        **config: All other keyword arguments that the final class was called with; an untrained copy is
            ``make(self.name, spec, **self.config)``.

    Attributes:
        head: The head.

    Raises:
        ValueError: The head is none, or is about the units of a group that the spec lacks.
    """

    name: ClassVar[str] = ""

    def __init__(self, spec: SymmetrySpec, *, head: Mapping[str, Any], **config: Any) -> None:
        super().__init__()
        self.head = make_head(head)
        self.spec, self.config = spec, {"head": dict(head), **config}
        groups = [group.name for group in spec.groups]
        if self.head.units is not None and self.head.units not in groups:
            raise ValueError(f"head.units: got {self.head.units!r}, expected a group: {', '.join(groups)}")

    @abstractmethod
    def raw(self, networks: Sequence[Params]) -> list[Tensor]:
        """What the head gets, for networks of one or several architectures of the family.

        Args:
            networks: Params [B, ...] of every architecture; hidden widths may differ from the spec's.

        Returns:
            For every architecture [B, head.raw], or [B, n, head.raw] for a head about units.

        Raises:
            ValueError: A name is missing, or a shape is not the family's.
        """

    @abstractmethod
    def standardize(self, params: Params) -> None:
        """Divide weights by the size that they have in these networks; once, before training.

        Args:
            params: Params [B, ...], such as those of the training networks.
        """

    def forward(self, params: Params) -> Tensor:
        """Read networks of one architecture.

        Args:
            params: Qualified name -> [B, *shape], all parameters of the spec.

        Returns:
            [B, k]: logits of classes, or numbers; [B, n, k] for a head about units.

        Raises:
            ValueError: The networks are not of the family: see `check_params`.
        """
        return self.forward_mixed([params])[0]

    def forward_mixed(self, networks: Sequence[Params]) -> list[Tensor]:
        """Read networks of several architectures of the family at once; the same function of each.

        Args:
            networks: Params [B, ...] of every architecture.

        Returns:
            What ``forward`` returns, for every architecture.
        """
        if not networks:
            raise ValueError("networks: got none, expected params of at least one architecture")
        for params in networks:
            check_params(self, params)
        return [self.head(raw) for raw in self.raw(networks)]


def check_params(reader: Metanet | Functional, params: Params) -> None:
    """Refuse networks that are not of a reader's family.

    Args:
        reader: What is to read them; has a floating-point parameter.
        params: Qualified name -> [B, *shape].

    Raises:
        ValueError: A parameter of the spec is missing, is of another dtype than the reader, has a shape that
            is not the family's up to the number of hidden units, disagrees with another one about a group or
            about the number of networks, or is NaN or infinite; or there are no networks.
    """
    dtype = next(p.dtype for p in reader.parameters() if p.is_floating_point())
    count: int | None = None
    units = {group.name: None if group.permutable else group.size for group in reader.spec.groups}
    for name in reader.spec.params:
        if name not in params:
            raise ValueError(
                f"params: got {', '.join(params) or 'none'}, expected {name!r} among them; rename them to "
                "the family's names"
            )
        value = params[name]
        if value.dtype != dtype:
            raise ValueError(
                f"params: {name!r} is {value.dtype}, expected {dtype} as the reader is; convert the "
                "networks, or the reader by .to(dtype)"
            )
        count = len(value) if count is None and value.ndim else count
        if value.ndim == 0 or len(value) != count or count == 0:
            raise ValueError(
                f"params: {name!r} has shape {tuple(value.shape)}, expected [B, ...] with as many networks B "
                f"in all params, at least one{f': {count}' if count else ''}"
            )
        for block in reader.spec.blocks_of(name):
            view = BlockView.of(reader.spec, block)
            for axis, size in zip(view.axes, view.sizes(value), strict=True):
                if axis.group is None:
                    continue
                known = units[axis.group]
                units[axis.group] = size if known is None else known
                if size != units[axis.group]:
                    raise ValueError(
                        f"params: {block.label!r} has {size} units of group {axis.group!r}, expected "
                        f"{units[axis.group]}; give networks of one architecture of the family"
                    )
    check_finite(params)


def check_finite(params: Params) -> None:
    """Raise a ``ValueError`` that names the first parameter and network with NaN or infinite weights."""
    for name, value in params.items():
        if not bool(value.isfinite().all()):
            bad = int((~value.reshape(len(value), -1).isfinite()).any(1).nonzero()[0])
            raise ValueError(
                f"params: {name!r} of network {bad} is NaN or infinite, expected finite weights; leave "
                "diverged networks out"
            )


class UpdateRule(nn.Module, ABC):
    """From weights, gradients and a state to an update of the weights, for any base network."""

    name: ClassVar[str] = ""
    config: dict[str, Any]

    @abstractmethod
    def init_state(self, layout: Any, flat: Tensor) -> dict[str, Tensor]:
        """State before the first step, for parameters ``flat`` [*batch, N] that ``layout`` describes."""

    @abstractmethod
    def forward(
        self, layout: Any, flat: Tensor, grads: Tensor, state: dict[str, Tensor], *, inplace: bool = False
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Update [*batch, N], to be subtracted from ``flat``, and the state after it."""


_REGISTRY: Registry[Any] = Registry("metanet")


def register(name: str) -> Callable[[T], T]:
    """Class decorator: make a metanet, functional or update rule known to [make][amortopt.metanets.make].

    Raises:
        ValueError: The name is taken.
    """
    return _REGISTRY.register(name)


def registered(kind: type = nn.Module) -> list[str]:
    """Names that [make][amortopt.metanets.make] knows of a kind, such as ``Metanet``; sorted."""
    return _REGISTRY.names(kind)


def reads_answers(name: str) -> bool:
    """Whether a metanet or functional runs the networks that it reads, and so is made with their ``family``.

    Raises:
        ValueError: There is no such name.
    """
    return _REGISTRY.has_argument(name, "family")


def make(name: str, *arguments: Any, **config: Any) -> Any:
    """Make an untrained metanet, functional or update rule by name.

    Args:
        name: One of [registered][amortopt.metanets.registered].
        *arguments: The symmetry of the family, for metanets and functionals.
        **config: Keyword arguments of the class.

    Returns:
        The module, initialised from the global random state.

    Raises:
        ValueError: There is no such name, or the class has no such argument.
    """
    return _REGISTRY.make(name, *arguments, **config)
