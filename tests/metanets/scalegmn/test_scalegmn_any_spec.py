"""ScaleGMN over any symmetry: slices, groups within groups, several scalings of one unit, any exponents."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from amortopt._types import Params
from amortopt.metanets import ScaleGMN
from amortopt.symmetry import Axis, SymmetrySpec
from amortopt.testing import assert_equivariant
from tests.cases import FAMILY_CASES, Case
from tests.metanets.networks import SMALL, conditions_of, metanet, networks, relative, spec_of, without_scales
from tests.metanets.specs import SPECS, params_like, random_spec, written

READS = ((), ("batch",), ("l1",), ("batch", "l1"))
L1 = torch.tensor([0.0, 1e-3], dtype=torch.float64)


def _check(made: ScaleGMN, spec: SymmetrySpec, params: Params) -> None:
    l1 = L1 if "l1" in made.conditions else None
    grads = {name: torch.randn_like(p) for name, p in params.items()} if "batch" in made.conditions else None
    operator = lambda params, grads=None: made(params, conditions_of(grads, l1))  # noqa: E731
    assert_equivariant(operator, spec, params, grads=grads, batched=True, seeds=(0,), low=1e-3, high=1e3)


@pytest.mark.parametrize("conditions", READS, ids="+".join)
@pytest.mark.parametrize("direction", ["forward", "bidirectional"])
@pytest.mark.parametrize("name", SPECS)
def test_scalegmn_of_any_symmetry_equivariant(name: str, direction: str, conditions: tuple[str, ...]) -> None:
    _check(
        metanet(SPECS[name], direction=direction, conditions=conditions),
        SPECS[name],
        params_like(SPECS[name]),
    )


@pytest.mark.parametrize("direction", ["forward", "bidirectional"])
@pytest.mark.parametrize("name", SPECS)
def test_scalegmn_of_any_symmetry_permutation_option_equivariant(name: str, direction: str) -> None:
    made = metanet(SPECS[name], direction=direction, conditions=("batch",), respects="permutation")
    _check(made, without_scales(SPECS[name]), params_like(SPECS[name]))


@pytest.mark.parametrize("seed", range(25))
def test_scalegmn_of_random_symmetries_equivariant(seed: int) -> None:
    spec = random_spec(seed)
    _check(metanet(spec, conditions=("batch",)), spec, params_like(spec))


@pytest.mark.parametrize("base", FAMILY_CASES, ids=str)
def test_scalegmn_of_every_family_equivariant(base: Case) -> None:
    _check(metanet(spec_of(base), conditions=("batch", "l1")), spec_of(base), networks(base))


@pytest.mark.parametrize("share", [0.5, 0.9])
@pytest.mark.parametrize("name", SPECS)
def test_scalegmn_of_any_symmetry_equivariant_with_exact_zeros(name: str, share: float) -> None:
    params = {key: p * (torch.rand_like(p) > share) for key, p in params_like(SPECS[name]).items()}
    _check(metanet(SPECS[name]), SPECS[name], params)


def _without(spec: SymmetrySpec, name: str) -> SymmetrySpec:
    """The spec with a group that scales nothing."""

    def changed(axis: Axis) -> Axis:
        also = tuple(entry for entry in axis.also if entry[0] != name)
        return replace(axis, exponent=0 if axis.group == name else axis.exponent, also=also)

    blocks = tuple(replace(block, axes=tuple(map(changed, block.axes))) for block in spec.blocks)
    return replace(spec, blocks=blocks)


@pytest.mark.parametrize(
    ("name", "group"),
    [
        *(("conv-norm-relu", "b"), ("conv-norm-tanh", "b"), ("depthwise-after", "b"), ("attention", "k")),
        *(("lstm", "h"), ("grouped-tanh", "a"), ("mixer", "p"), ("signs-of-known-units", "c")),
    ],
)
def test_scalegmn_that_knows_less_scaling_fails(name: str, group: str) -> None:
    made = metanet(_without(SPECS[name], group))
    with pytest.raises(AssertionError, match="not equivariant"):
        _check(made, SPECS[name], params_like(SPECS[name]))


@pytest.mark.parametrize("name", ["attention", "grouped-relu", "heads-apart"])
def test_scalegmn_that_knows_places_in_runs_fails(name: str) -> None:
    groups = [g if g.within is None else replace(g, permutable=False) for g in SPECS[name].groups]
    with pytest.raises(AssertionError, match="not equivariant"):
        _check(metanet(replace(SPECS[name], groups=tuple(groups))), SPECS[name], params_like(SPECS[name]))


@pytest.mark.parametrize("name", SPECS)
def test_scalegmn_of_any_symmetry_uses_all_its_parameters(name: str) -> None:
    made = metanet(SPECS[name], conditions=("batch", "l1"))
    params = params_like(SPECS[name])
    better = made(params, conditions_of(params, L1))
    torch.stack([p.square().sum() for p in better.values()]).sum().backward()
    assert not [key for key, p in made.named_parameters() if p.grad is None and p.numel()]


@pytest.mark.parametrize("name", SPECS)
def test_scalegmn_of_any_symmetry_proposes_for_every_weight(name: str) -> None:
    made = ScaleGMN(SPECS[name], **SMALL).double()  # type: ignore[arg-type]
    made.open_gates()
    with torch.no_grad():
        for prototype in made.readout.node_prototype:
            prototype.normal_()
    params = params_like(SPECS[name])
    better = made(params)
    assert all(bool((better[key] != 0).all()) for key in params if key not in made.layout.fixed)


@pytest.mark.parametrize("value", [0.0, 1e-6, 1e6])
@pytest.mark.parametrize("name", SPECS)
def test_scalegmn_of_any_symmetry_float32_finite(name: str, value: float) -> None:
    made = metanet(SPECS[name], dtype=torch.float32)
    params = {
        k: (p * value).requires_grad_() for k, p in params_like(SPECS[name], dtype=torch.float32).items()
    }
    better = made(params)
    sizes = {key: p.detach().abs().amax().clamp(min=1e-20) for key, p in better.items()}
    loss = torch.stack([(p / sizes[key]).square().sum() for key, p in better.items()]).sum()
    found = torch.autograd.grad(loss, [*made.parameters(), *params.values()], allow_unused=True)
    assert all(bool(p.isfinite().all()) for p in better.values())
    assert all(g is None or bool(g.isfinite().all()) for g in found)


def test_scalegmn_depends_on_everything_in_one_layer() -> None:
    # Queries of one head change what is proposed for the values of that head, through the head.
    made = metanet(SPECS["attention"], layers=1)
    params = params_like(SPECS["attention"], 1)
    changed = {key: p.clone() for key, p in params.items()}
    changed["qkv"][:, :2] *= 1.5
    with torch.no_grad():
        before, after = made(params), made(changed)
    assert relative({"v": after["qkv"][:, 12:]}, {"v": before["qkv"][:, 12:]}) > 1e-6


GATED = written(
    "x 3 none no\nh 5 sign yes\nn 5 sign no h\nm 4 positive yes\ny 2 none no",
    {
        **{"cell": "h^+1, x^-1", "gate": "h^0, x^-1", "again": "h^+1, h^-1", "gain": "h^+1·n^-1"},
        **{"up": "m^+1, h^0·n^+1", "down": "h^0, m^-1", "pair": "y^+1, h^-1, x^0"},
    },
)


@pytest.mark.parametrize("spec", [SPECS["attention"], GATED], ids=["nested", "derived"])
def test_scalegmn_mixed_widths_beside_sets_about_the_same_units(spec: SymmetrySpec) -> None:
    made = metanet(spec)
    batches = [params_like(spec, 1) for _ in range(3)]
    batches[1] |= {"up": torch.randn(1, 7, 5).double(), "down": torch.randn(1, 5, 7).double()}
    for got, batch in zip(made.forward_mixed(batches, [conditions_of()] * 3), batches, strict=True):
        assert relative(got, made(batch)) < 1e-10


@pytest.mark.parametrize(
    ("name", "shapes", "message"),
    [
        ("attention", {"out": (5, 8)}, r"'out' has 8 units of group 'v', expected 6 as in the params"),
        ("depthwise-after", {"stem": (9, 3)}, r"'s'"),
        (
            "attention",
            {"qkv": (24, 5)},
            r"'qkv\[0:6, 0:5\]' has shape \(24, 5\) .*expected 18x5, as its slices",
        ),
        ("lstm", {"head": (2, 6)}, r"'head' has 6 units of group 'h'|got 6 units"),
    ],
)
def test_scalegmn_refuses_other_widths(name: str, shapes: dict[str, tuple[int, ...]], message: str) -> None:
    params = params_like(SPECS[name], 1)
    params |= {key: torch.zeros(1, *shape, dtype=torch.float64) for key, shape in shapes.items()}
    with pytest.raises(ValueError, match=message):
        metanet(SPECS[name])(params)


def test_scalegmn_of_a_low_rank_product_between_scaled_groups() -> None:
    # Both ends write: the inner units show in the columns that no other factor scales.
    spec = written("x 4 none no\na 3 free yes\nb 5 sign yes", {"u": "b^+1, a^+1", "v": "a^-1, x^-1"})
    _check(metanet(spec), spec, params_like(spec))
