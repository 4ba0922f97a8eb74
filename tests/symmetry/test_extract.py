from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from amortopt.symmetry import Axis, UnknownOperationError, UnknownOperationWarning, extract
from amortopt.testing import assert_function_preserved
from tests.cases import CASES, Case, HandWritten, case
from tests.networks import bad


@pytest.mark.parametrize("case", CASES, ids=str)
def test_extract_preserves_the_function(case: Case) -> None:
    net, x = case.build(), case.example_input()
    assert_function_preserved(net, x, extract(net, x, strict=True), low=1e-3, high=1e3)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_extract_finds_every_hidden_group_and_its_kind(case: Case) -> None:
    spec = extract(case.build(), case.example_input())
    hidden = [group for group in spec.groups if group.name.startswith("h")]
    assert tuple(group.kind for group in hidden) == case.kinds
    assert all(group.permutable for group in hidden)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_extract_leaves_inputs_and_outputs_alone(case: Case) -> None:
    spec = extract(case.build(), case.example_input())
    assert all(group.trivial for group in spec.groups if not group.name.startswith("h"))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_extract_covers_every_parameter(case: Case) -> None:
    net = case.build()
    spec = extract(net, case.example_input())
    named = dict(net.named_parameters())
    assert set(spec.params) == set(named)
    for block in spec.blocks:
        assert torch.Size(block.shape).numel() == named[block.param].numel()


@pytest.mark.parametrize("case", [c for c in CASES if "free" not in c.kinds and c.kinds], ids=str)
def test_a_larger_scale_kind_is_not_a_symmetry(case: Case) -> None:
    """Negative control: the proof notices scales that the extraction rightly forbids."""
    net, x = case.build(), case.example_input()
    spec = extract(net, x)
    for wrong in [group for group in spec.groups if group.name.startswith("h")]:
        groups = tuple(dataclasses.replace(g, kind="free") if g is wrong else g for g in spec.groups)
        with pytest.raises(AssertionError, match="the function changed"):
            assert_function_preserved(net, x, dataclasses.replace(spec, groups=groups))


@pytest.mark.parametrize("case", [c for c in CASES if c.kinds and c.name != "mlp-width-one"], ids=str)
def test_permuting_the_outputs_is_not_a_symmetry(case: Case) -> None:
    net, x = case.build(), case.example_input()
    spec = extract(net, x)
    groups = tuple(dataclasses.replace(g, permutable=g.permutable or g.name == "out") for g in spec.groups)
    if groups == spec.groups:
        pytest.skip("the output is spread over several axes")
    with pytest.raises(AssertionError, match="the function changed"):
        assert_function_preserved(net, x, dataclasses.replace(spec, groups=groups))


def test_a_wrongly_tied_group_is_not_a_symmetry() -> None:
    net, x = case("mlp-tanh").build(), case("mlp-tanh").example_input()
    spec = extract(net, x)
    blocks = tuple(
        dataclasses.replace(b, axes=(Axis("h1", 1, 32), *b.axes[1:])) if b.param == "2.weight" else b
        for b in spec.blocks
    )
    with pytest.raises(AssertionError, match="the function changed"):
        assert_function_preserved(net, x, dataclasses.replace(spec, blocks=blocks))


def test_flatten_gives_channels_times_positions() -> None:
    net, x = case("cnn-flatten").build(), case("cnn-flatten").example_input()
    (block,) = extract(net, x).blocks_of("7.weight")
    assert block.axes == (Axis("h3", 1, 6), Axis("h2", -1, 5), Axis(None, 0, 4, "position"))


def test_flattened_input_is_one_group() -> None:
    net, x = case("mlp-image").build(), case("mlp-image").example_input()
    assert extract(net, x).group("in").size == 48


def test_residual_stream_is_one_group() -> None:
    net, x = case("residual").build(), case("residual").example_input()
    spec = extract(net, x)
    written = {spec.blocks_of(name)[0].axes[0].group for name in ("stem.weight", "b.weight", "b.bias")}
    assert written == {"h1"}


@pytest.mark.parametrize("batch", [1, 2, 5, 40])
def test_the_batch_size_does_not_matter(batch: int) -> None:
    for name in ("mlp-tanh", "cnn-1d"):
        net, x = case(name).build(), case(name).example_input()
        other = torch.randn(batch, *x.shape[1:])
        assert extract(net, other) == extract(net, x)


def test_other_names_give_the_same_operations() -> None:
    x = torch.zeros(1, 40)
    kinds = [
        [op.kind for op in extract(net, x).operations] for net in (HandWritten(), case("mlp-tanh").build())
    ]
    assert kinds[0] == kinds[1]


@pytest.mark.parametrize("training", [True, False])
def test_extract_changes_nothing(training: bool) -> None:
    net = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Dropout(), nn.Linear(3, 2)).train(training)
    net[2].train(not training)
    net[0].weight.requires_grad_(False)
    net.register_buffer("seen", torch.ones(2))
    before = {name: (tensor, tensor.clone()) for name, tensor in net.state_dict(keep_vars=True).items()}
    random = torch.get_rng_state()
    extract(net, torch.zeros(2, 4))
    after = net.state_dict(keep_vars=True)
    assert list(after) == list(before)
    assert all(after[name] is tensor and torch.equal(tensor, copy) for name, (tensor, copy) in before.items())
    assert (net.training, net[2].training) == (training, not training)
    assert all(p.grad is None for p in net.parameters())
    assert not net[0].weight.requires_grad
    assert torch.equal(random, torch.get_rng_state())


class _Renormed(nn.Module):
    """An operation that no rule covers, in the middle."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.odd, self.last = nn.Linear(4, 6), _Renorm(), nn.Linear(6, 5)
        self.head = nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.last(self.odd(self.first(x)))))


class _Renorm(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.renorm(x, 2, 0, 1.0)


def test_an_unknown_operation_warns_and_costs_only_what_it_touches() -> None:
    net, x = _Renormed(), torch.randn(3, 4)
    with pytest.warns(UnknownOperationWarning, match=r"aten\.renorm at 'odd'.*first\.weight") as caught:
        spec = extract(net, x)
    assert caught[0].filename == __file__
    kinds = [(g.kind, g.permutable) for g in spec.groups if g.name.startswith("h")]
    assert kinds == [("none", False), ("sign", True)]
    assert_function_preserved(net, x, spec)


def test_an_unknown_operation_raises_when_strict() -> None:
    with pytest.raises(UnknownOperationError, match=r"aten\.renorm at 'odd'"):
        extract(_Renormed(), torch.randn(3, 4), strict=True)


class _Fft(nn.Module):
    """Has no rule, and mixes the units."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.fft.fft(x).real


@pytest.mark.parametrize(
    "odd", [_Fft(), nn.Softmax(1), nn.Unflatten(1, (2, 3))], ids=lambda m: type(m).__name__
)
def test_what_has_no_rule_is_never_claimed(odd: nn.Module) -> None:
    net, x = nn.Sequential(nn.Linear(4, 6), odd, nn.Flatten(), nn.Linear(6, 2)), torch.randn(3, 4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnknownOperationWarning)
        spec = extract(net, x)
    assert set(spec.params) == {name for name, _ in net.named_parameters()}
    assert_function_preserved(net, x, spec)


class _Function(nn.Module):
    """Two dense layers with an arbitrary function of the hidden units between them."""

    def __init__(self, function: object) -> None:
        super().__init__()
        self.a, self.b, self.function = nn.Linear(5, 6), nn.Linear(6, 3), function

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.function(self.a(x)))  # type: ignore[operator]


@pytest.mark.parametrize(
    ("function", "kind"),
    [
        (lambda x: 2 * x / 3 - 0.0, "free"),
        (lambda x: -x, "free"),
        (lambda x: x + 1, "none"),
        (lambda x: 1 - x, "none"),
        (lambda x: x.abs() - x.relu(), "positive"),
        (lambda x: x.clamp(-0.1, 0.1), "sign"),
        (lambda x: x.clamp(min=0), "positive"),
        (lambda x: x.clamp(-0.1, 0.2), "none"),
        (lambda x: x.clamp(max=0.1), "none"),
        (lambda x: x / x.abs().add(1), "sign"),
        (lambda x: x.sin() + x.tanh(), "sign"),
        (lambda x: x.sin().mul_(2).relu_(), "none"),
        (lambda x: x.softmax(-1), "none"),
        (lambda x: x - x.amax(1, keepdim=True), "none"),
        (lambda x: x + x.sum(), "none"),
        (lambda x: x.unsqueeze(1).expand(-1, 1, -1).squeeze(1), None),
        (lambda x: x.view(-1, 2, 3).transpose(1, 2).flatten(1), None),
        (lambda x: x.view(3, -1, 6).view(-1, 1, 6).reshape(-1, 6), "free"),
        (lambda x: x.flip(1), None),
        (lambda x: x * x, None),
        (lambda x: x[:, [1, 0, 2, 3, 4, 5]], None),
        (lambda x: x + torch.arange(6.0), None),
        (lambda x: torch.cat([x[:, :3], x[:, 3:].relu()], 1), None),
    ],
)  # fmt: skip
def test_functions_of_hidden_units_are_classed_soundly(function: object, kind: str | None) -> None:
    net, x = _Function(function).double(), torch.randn(3, 5, dtype=torch.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnknownOperationWarning)
        spec = extract(net, x)
    if kind is not None:
        assert (spec.group("h1").kind, spec.group("h1").permutable) == (kind, True)
    assert_function_preserved(net, x, spec)


def test_an_unused_parameter_does_not_move() -> None:
    net = case("mlp-tanh").build()
    net.register_parameter("extra", nn.Parameter(torch.randn(2, 3)))
    (block,) = extract(net, torch.zeros(1, 40)).blocks_of("extra")
    assert block.axes == (Axis(None, 0, 2, "unused"), Axis(None, 0, 3, "unused"))


class _Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(torch.tanh(self.layer(x)))


def _tied() -> nn.Module:
    net = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))
    net[2].weight = net[0].weight
    return net


@pytest.mark.parametrize("build", [_Twice, _tied])
def test_a_parameter_used_twice_moves_by_both_uses(build: Callable[[], nn.Module]) -> None:
    net, x = nn.Sequential(nn.Linear(3, 4), build()), torch.randn(2, 3)
    spec = extract(net, x)
    (block,) = spec.blocks_of(next(name for name in spec.params if name.endswith("weight") and "1." in name))
    assert block.groups[0] == block.groups[1]
    assert_function_preserved(net, x, spec)


def test_a_parameter_with_two_names_stands_once() -> None:
    assert extract(_tied(), torch.zeros(2, 4)).params == ("0.weight", "0.bias", "2.bias")


class _PaddedBySizes(nn.Module):
    """A convolution that computes its padding from sizes, which it keeps as a buffer."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv1d(4, 5, 3), nn.Linear(5, 2)
        self.register_buffer("sizes", torch.tensor([3, 2], dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        width = int(torch.ceil(x.shape[-1] / self.sizes[1] - self.sizes[0] / self.sizes[1]))
        return self.head(torch.tanh(self.conv(F.pad(x, (0, width)))).mean(-1))


def test_sizes_kept_as_integers_may_decide_shapes() -> None:
    net, x = _PaddedBySizes(torch.int64), torch.randn(3, 4, 9)
    spec = extract(net, x)
    assert any(group.permutable for group in spec.groups)
    assert_function_preserved(net, x, spec)


def test_weights_may_not_decide_shapes() -> None:
    with pytest.raises(ValueError, match="takes a number out of a tensor"):
        extract(_PaddedBySizes(torch.float32), torch.randn(3, 4, 9))


@pytest.mark.parametrize("build", [bad.Masked, bad.MaskByValue])
def test_shapes_and_constants_that_export_cannot_follow_are_traced_by_running(
    build: Callable[[], nn.Module],
) -> None:
    net, x = build(), torch.randn(4, 4)
    spec = extract(net, x)
    assert any(group.permutable for group in spec.groups)
    assert_function_preserved(net, x, spec)


def test_parameters_that_only_training_uses_move_with_what_they_read() -> None:
    class Auxiliary(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.head, self.extra = nn.Linear(3, 5), nn.Linear(5, 2), nn.Linear(5, 2)

        def forward(self, x: Tensor) -> tuple[Tensor, ...]:
            x = torch.relu(self.stem(x))
            return (
                (self.head(x), self.extra(F.dropout(x, 0.5, self.training)))
                if self.training
                else (self.head(x),)
            )

    net, x = Auxiliary(), torch.randn(4, 3)
    spec = extract(net, x)
    assert spec.blocks_of("extra.weight")[0].axes[1] == spec.blocks_of("head.weight")[0].axes[1]
    assert spec.verify(net, x).holds


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (nn.Tanh, "has no parameters"),
        (lambda: nn.LazyLinear(3), "'weight' is lazy"),
        (lambda: bad.with_parameter(torch.ones(2, dtype=torch.int64)), r"'extra' has dtype torch\.int64"),
        (
            lambda: bad.with_parameter(torch.ones(2, dtype=torch.complex64)),
            r"'extra' has dtype torch\.complex64",
        ),
        (bad.Branching, "Branching runs but cannot be traced.*forward may not branch or loop"),
        (bad.Halting, "Halting runs but cannot be traced.*forward may not branch or loop"),
        (bad.ThroughNumpy, "takes a number out of a tensor that depends on inputs or parameters"),
        (lambda: nn.Linear(5, 3), r"example_input: Linear does not take inputs of shapes \[\(2, 4\)\]"),
        (lambda: torch.zeros(3), "got Tensor, expected an nn.Module"),
    ],
)
def test_bad_modules_are_named(build: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        extract(build(), torch.zeros(2, 4))  # type: ignore[operator]


@pytest.mark.parametrize("example", [None, [1.0, 2.0], (), {"input": 1}])
def test_bad_example_inputs_are_named(example: object) -> None:
    with pytest.raises(ValueError, match=r"example_input: got .* expected what forward takes.*one tensor"):
        extract(nn.Linear(4, 3), example)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", bad.BAD)
def test_what_cannot_be_extracted_is_an_error_in_one_line(name: str) -> None:
    with pytest.raises(ValueError, match=r"^(module|example_input): ") as caught:
        extract(bad.BAD[name](), bad.X)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", bad.ODD)
def test_modules_out_of_the_ordinary_have_a_spec_that_holds(name: str) -> None:
    net = bad.ODD[name]()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnknownOperationWarning)
        spec = extract(net, bad.X)
    assert set(spec.params) == {name for name, _ in net.named_parameters()}
    assert_function_preserved(net, bad.X, spec)


class _Wrapped(nn.Module):
    """A hidden layer that is computed in some special way."""

    def __init__(self, how: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.b, self.how = nn.Linear(4, 6), nn.Linear(6, 3), how

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.how(self.a, x))


def _no_grad(layer: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return layer(x).relu()


def _autocast(layer: nn.Module, x: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16, enabled=x.dtype == torch.float32):
        x = layer(x).relu()
    return x.to(layer.weight.dtype)


def _checkpointed(layer: nn.Module, x: Tensor) -> Tensor:
    return checkpoint(lambda v: layer(v).relu(), x, use_reentrant=False)


@pytest.mark.parametrize("how", [_no_grad, _autocast, _checkpointed])
def test_how_a_part_is_run_costs_nothing(how: Callable[[nn.Module, Tensor], Tensor]) -> None:
    spec = extract(_Wrapped(how), torch.randn(5, 4), strict=True)
    assert (spec.group("h1").kind, spec.group("h1").permutable) == ("positive", True)


def test_a_number_that_leaves_the_tensors_holds_what_it_came_from() -> None:
    net, x = _Wrapped(lambda layer, v: layer(v) * layer(v).max().item()), torch.randn(5, 4)
    with pytest.warns(UnknownOperationWarning, match=r"aten\.mul.*a\.weight"):
        spec = extract(net, x)
    assert spec.group("h1").trivial
    assert_function_preserved(net, x, spec)


def test_derivatives_by_torch_func_are_refused() -> None:
    net = _Wrapped(lambda layer, v: torch.func.grad(lambda h: h.cosh().log().sum())(layer(v)))
    with pytest.raises(ValueError, match=r"_Wrapped uses torch\.func\.grad"):
        extract(net, torch.randn(5, 4))


def test_a_wrapper_is_refused_with_what_to_pass() -> None:
    with pytest.raises(ValueError, match=r"got DataParallel.*pass module\.module"):
        extract(nn.DataParallel(nn.Linear(4, 3)), torch.randn(5, 4))


def test_extract_may_run_in_many_threads() -> None:
    def work(_: int) -> tuple[str, bool]:
        net, x = mlp_with_norm(), torch.zeros(5, 4)
        spec = extract(net, x)
        return str(spec), spec.verify(net, x, elements=1, probes=0).holds

    def mlp_with_norm() -> nn.Module:
        return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(0.1), nn.Tanh(), nn.Linear(6, 3))

    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(work, range(16)))
    assert set(results) == {(str(extract(mlp_with_norm(), torch.zeros(5, 4))), True)}


def test_extract_refuses_a_strict_that_is_no_truth_value() -> None:
    with pytest.raises(ValueError, match="strict: got 'no', expected True or False"):
        extract(nn.Linear(4, 3), torch.zeros(2, 4), strict="no")  # type: ignore[arg-type]
