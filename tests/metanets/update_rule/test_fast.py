"""FastRule has the updates of UNFRule, its reference."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from amortopt.metanets.update_rule.fast import FastRule, is_fast, tiles
from amortopt.metanets.update_rule.layout import UpdateLayout
from amortopt.metanets.update_rule.rule import UNFRule
from amortopt.symmetry import extract
from tests.cases import CASES, FAMILY_CASES, Case

NETWORKS = [*CASES, *FAMILY_CASES]
# One of every kind of bucket: gates and square matrices, kernels, heads, nested groups, pairs of matrices.
SOME = [
    case
    for case in NETWORKS
    if any(
        word in case.name.lower() for word in ("lstm", "rnn", "conv2d", "transformer", "resnet", "residual")
    )
]


def layout_of(case: Case) -> UpdateLayout:
    net = case.build()
    return UpdateLayout(
        extract(net, case.example_input()), {name: p.shape for name, p in net.named_parameters()}
    )


def filled(rule: UNFRule) -> UNFRule:
    with torch.no_grad():
        for p in rule.parameters():
            if p.ndim and not p.any():
                p.normal_(std=0.1)
    return rule


def check(layout: UpdateLayout, rule: UNFRule, tile: int) -> None:
    prepared = FastRule(rule, layout, tile)
    flat = torch.randn(layout.size)
    expected, state = rule.init_state(layout, flat), rule.init_state(layout, flat)
    with torch.no_grad():
        for step in range(3):
            grads = torch.randn(layout.size) * (0.1, 1e-6, 3.0)[step]
            update, expected = rule(layout, flat, grads, expected)
            found = prepared(torch.stack([flat, grads]), state)
            scale = float(update.abs().max())
            torch.testing.assert_close(found, update, rtol=1e-5, atol=1e-5 * scale)
            flat = flat - update
    for key, value in expected.items():
        torch.testing.assert_close(state[key], value, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("tile", [20, 1 << 14], ids=["small tiles", "one tile"])
@pytest.mark.parametrize("case", SOME, ids=str)
@pytest.mark.filterwarnings("ignore::amortopt.symmetry.UnknownOperationWarning")
def test_updates_are_those_of_the_rule_for_any_network(case: Case, tile: int) -> None:
    check(layout_of(case), filled(UNFRule(width=5)), tile)


@pytest.mark.parametrize("config", [{"depth": 1}, {"depth": 4, "width": 3}], ids=str)
@pytest.mark.parametrize("case", SOME[:3], ids=str)
def test_updates_are_those_of_the_rule_for_any_depth(case: Case, config: dict[str, Any]) -> None:
    layout = layout_of(case)
    for tile in (20, 1 << 14):
        check(layout, filled(UNFRule(**{"width": 4, **config})), tile)


@pytest.mark.parametrize(
    "config",
    [
        {"net": "nfn"},
        {"net": "deepset"},
        {"net": "mlp"},
        {"direction": "momentum"},
        {"second": False},
        {"gate": False},
    ],
    ids=str,
)
def test_fast_rule_is_for_rules_with_all_parts(config: dict[str, Any]) -> None:
    assert is_fast(UNFRule())
    assert not is_fast(UNFRule(**config))


@pytest.mark.parametrize("case", SOME, ids=str)
@pytest.mark.parametrize("size", [1, 7, 100, 1 << 14])
def test_tiles_are_every_element_once_in_order(case: Case, size: int) -> None:
    layout = layout_of(case)
    cut = tiles(layout, size)
    assert [tile.elements[0] for tile in cut] == [0, *(tile.elements[1] for tile in cut[:-1])]
    assert cut[-1].elements[1] == layout.size
    for tile in cut:
        assert torch.Size(tile.shape).numel() == tile.elements[1] - tile.elements[0]
        assert tile.span == (0, tile.bucket.shape[0]) or tile.blocks[1] - tile.blocks[0] == 1
