"""What is read and not used: values whose shape alone matters, layers run twice, axes of one position."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from amortopt.symmetry import RuleError, SymmetrySpec, extract
from amortopt.symmetry.rules import base


def _sized(spec: SymmetrySpec) -> tuple[int, int, int]:
    size = spec.gauge_dimension()
    return size.continuous, round(size.permutation_bits), size.sign_bits


class _Positions(nn.Module):
    """Positions are numbered by the shape of a value."""

    def __init__(self) -> None:
        super().__init__()
        self.e, self.p = nn.Embedding(9, 8), nn.Embedding(20, 8)
        self.a, self.o = nn.Linear(8, 8), nn.Linear(8, 2)

    def forward(self, ids: Tensor) -> Tensor:
        h = self.e(ids)
        h = h + self.p(torch.arange(h[:, :, -1].softmax(-1).shape[1]))
        return self.o(h + self.a(h))


def test_an_operation_of_which_only_the_shape_is_used_costs_nothing() -> None:
    net, ids = _Positions(), torch.randint(9, (2, 5))
    spec = extract(net, ids, strict=True)
    proof = spec.verify(net, ids, probes=None)
    assert proof.holds and not proof.larger and spec.group("h1").permutable


def test_what_is_written_in_place_is_used() -> None:
    class Writing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            h = self.a(x)
            h[:, 0].mul_(2)
            return self.b(h)

    net, x = Writing(), torch.randn(5, 4)
    spec = extract(net, x)
    assert spec.verify(net, x).holds and not spec.group("h1").permutable


class _Fused(nn.Module):
    """Self-attention whose queries, keys and values come from one layer, in one of the ways to part them."""

    def __init__(self, parting: Callable[[Tensor], tuple[Tensor, ...]], runs: int = 1) -> None:
        super().__init__()
        self.e, self.qkv = nn.Linear(8, 12), nn.Linear(12, 36)
        self.p, self.o = nn.Linear(12, 12), nn.Linear(12, 2)
        self.parting, self.runs = parting, runs

    def forward(self, x: Tensor) -> Tensor:
        x = self.e(x)
        for _ in range(self.runs):
            q, k, v = self.parting(self.qkv(x))
            x = x + self.p(((q @ k.mT).softmax(-1) @ v).transpose(1, 2).flatten(2))
        return self.o(x)


def _stacked(qkv: Tensor) -> Tensor:
    return qkv.unflatten(-1, (3, 3, 4)).permute(2, 0, 3, 1, 4)


PARTINGS: dict[str, Callable[[Tensor], tuple[Tensor, ...]]] = {
    "unbind": lambda qkv: _stacked(qkv).unbind(0),
    "select": lambda qkv: (_stacked(qkv)[0], _stacked(qkv)[1], _stacked(qkv)[2]),
    "select from one": lambda qkv: (lambda t: (t[0], t[1], t[2]))(_stacked(qkv)),
    "chunk": lambda qkv: tuple(t.unflatten(-1, (3, 4)).transpose(1, 2) for t in qkv.chunk(3, -1)),
    "slices": lambda qkv: tuple(
        qkv[..., k : k + 12].unflatten(-1, (3, 4)).transpose(1, 2) for k in (0, 12, 24)
    ),
}


@pytest.mark.parametrize("runs", [1, 2, 3])
@pytest.mark.parametrize("parting", PARTINGS)
def test_one_layer_for_queries_keys_and_values_is_parted_alike(parting: str, runs: int) -> None:
    net, x = _Fused(PARTINGS[parting], runs), torch.randn(2, 5, 8)
    spec = extract(net, x, strict=True)
    proof = spec.verify(net, x)
    assert proof.holds, proof
    # 12 of the stream, and per head 4 that queries and keys share and 4 of the values.
    assert _sized(spec)[0] == 36 and _sized(spec) == _sized(extract(_Fused(PARTINGS["unbind"]), x))


def test_an_unused_parameter_costs_the_others_nothing() -> None:
    net, x = _Fused(PARTINGS["unbind"]), torch.randn(2, 5, 8)
    expected = _sized(extract(net, x))
    net.never = nn.Linear(3, 3)
    assert _sized(extract(net, x, strict=True)) == expected


@pytest.mark.parametrize("batch", [1, 2])
def test_zeros_of_one_network_input_are_zeros_of_many(batch: int) -> None:
    class Queries(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.e, self.q, self.o = nn.Linear(6, 8), nn.Embedding(4, 8), nn.Linear(8, 2)
            self.a, self.n = nn.MultiheadAttention(8, 2, batch_first=True), nn.LayerNorm(8)

        def forward(self, x: Tensor) -> Tensor:
            m, q = self.e(x), self.q.weight.unsqueeze(0).repeat(len(x), 1, 1)
            return self.o(self.n(torch.zeros_like(q) + self.a(torch.zeros_like(q) + q, m, m)[0]))

    net, x = Queries(), torch.randn(batch, 7, 6)
    spec = extract(net, x, strict=True)
    assert spec.verify(net, x).holds and _sized(spec) == (40, 65, 40)


def test_axes_of_one_position_are_no_units() -> None:
    class Standardized(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
            rows = self.weight.reshape(1, self.out_channels, -1)
            weight = F.batch_norm(rows, None, None, training=True, momentum=0.0).reshape_as(self.weight)
            return F.conv2d(x, weight, self.bias)

    first, last = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 2, 1)
    net = nn.Sequential(first, nn.BatchNorm2d(4), nn.Tanh(), Standardized(4, 3, 1), nn.Tanh(), last).eval()
    spec = extract(net, torch.randn(2, 3, 8, 8))
    assert spec.gauge_dimension().sign_bits == 7 and spec.blocks_of("0.weight")[0].shape == (4, 3, 3, 3)
    assert spec.verify(net, torch.randn(2, 3, 8, 8)).holds


# A bug in a rule


@dataclass
class _Broken:
    error: Exception

    def __call__(self, labels: object, call: base.Call) -> base.Result:
        raise self.error


@pytest.mark.parametrize(
    "error", [KeyError("dim"), AssertionError("sizes"), IndexError(3), TypeError("None")]
)
def test_a_bug_in_a_rule_is_an_error_that_names_operation_and_module(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(base._RULES, "aten.tanh", _Broken(error))
    net = nn.Sequential(nn.Linear(4, 6), nn.Sequential(nn.Tanh()), nn.Linear(6, 2))
    with pytest.raises(RuleError, match=rf"aten\.tanh at '1\.0' failed .*{type(error).__name__}") as caught:
        extract(net, torch.randn(5, 4))
    assert caught.value.__cause__ is error


def test_what_a_rule_was_not_written_for_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(base._RULES, "aten.tanh", _Broken(base.NoRule("it is too hot")))
    net = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2))
    with pytest.warns(UserWarning, match=r"aten\.tanh at '1' \(it is too hot\) has no symmetry rule"):
        assert extract(net, torch.randn(5, 4)).group("h1").trivial


class Normed(nn.Module):
    """A batch norm between two convolutions, which forward may keep in eval mode."""

    def __init__(self, frozen: bool, momentum: float) -> None:
        super().__init__()
        self.frozen = frozen
        self.a, self.norm, self.b = (
            nn.Conv1d(2, 6, 3),
            nn.BatchNorm1d(6, momentum=momentum),
            nn.Conv1d(6, 4, 3),
        )
        nn.init.normal_(self.norm.running_mean)
        nn.init.uniform_(self.norm.running_var, 0.5, 2)

    def forward(self, x: Tensor) -> Tensor:
        if self.frozen:
            self.norm.eval()
        return self.b(self.norm(self.a(x)).relu())


@pytest.mark.parametrize(
    ("frozen", "momentum", "kind"), [(True, 0.1, "free"), (False, 0.1, "sign"), (False, 0.0, "sign")]
)
def test_units_before_a_batch_norm_have_scales_if_its_statistics_never_change(
    frozen: bool, momentum: float, kind: str
) -> None:
    net, x = Normed(frozen, momentum), torch.randn(5, 2, 9)
    spec = extract(net, x, strict=True)
    assert spec.group(spec.blocks_of("a.bias")[0].groups[0]).kind == kind
    proof = spec.verify(net, x)
    assert proof.holds
    assert not proof.larger
