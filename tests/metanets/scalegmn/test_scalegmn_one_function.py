"""What a fresh metanet proposes computes one function for all networks: roles and signs belong together.

Every network gets the same prototypes, permuted and rescaled as its own units are. That computes the same if,
and only if, all weights that a unit has agree about its role, its sign and its factor.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from amortopt._types import Params
from amortopt.metanets import ScaleGMN
from amortopt.metanets.scalegmn import slots
from tests.cases import ALL_CASES, Case, case
from tests.metanets.networks import networks, spec_of

COUNT = 3


def _proposals(base: Case) -> Params:
    made = ScaleGMN(spec_of(base), width=16, channels=2, heads=2).double()
    made.open_gates()
    params = networks(base, COUNT)
    with torch.no_grad():
        for prototype in made.readout.node_prototype:
            prototype.normal_()
        for name in made.layout.fixed:
            params[name][1:] = params[name][:1]
        return made(params)


def _outputs(base: Case, params: Params) -> list[Tensor]:
    # In training mode: running statistics are not among what is proposed.
    net = base.build().double().train()
    for module in net.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
        elif isinstance(getattr(module, "dropout", None), float):
            module.dropout = 0.0
    given = base.example_input()
    inputs = tuple(
        x.double() if x.is_floating_point() else x for x in (given if isinstance(given, tuple) else (given,))
    )
    found = []
    for k in range(COUNT):
        state = {name: b.clone() for name, b in net.named_buffers()} | {n: p[k] for n, p in params.items()}
        with torch.no_grad():
            output = functional_call(net, state, inputs)
        while not isinstance(output, Tensor):
            output = next(iter(output.values() if isinstance(output, dict) else output))
        found.append(output)
    return found


def _difference(base: Case) -> float:
    first, *others = _outputs(base, _proposals(base))
    assert float(first.norm()) > 1e-6
    return max(float((y - first).norm() / first.norm()) for y in others)


# Its frequencies are a buffer along hidden units. Buffers are read and moved by nothing here, so each network
# keeps its frequencies in its own order.
PROPOSED = [case for case in ALL_CASES if case.name != "fourier-features"]


@pytest.mark.parametrize("base", PROPOSED, ids=str)
def test_scalegmn_proposals_compute_one_function(base: Case) -> None:
    # Slots are shared up to 1e-4 between units of nearly equal scores.
    assert _difference(base) < 1e-3


@pytest.mark.parametrize("name", ["batch-norm-tanh", "attention-packed", "lstm"])
def test_scalegmn_proposals_for_slots_that_do_not_belong_together_differ(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assign = slots.assign

    def torn(*args: object) -> dict[int, slots.Assigned]:
        found = assign(*args)  # type: ignore[arg-type]
        last = max(p for p in found)
        # Other units than the set's own order gives play its roles.
        turned = found[last].signed.unflatten(0, (-1, COUNT)).roll(1, 0).flatten(0, 1)
        return found | {last: slots.Assigned(found[last].slots, found[last].sign, turned)}

    monkeypatch.setattr("amortopt.metanets.scalegmn.layer.assign", torn)
    assert _difference(case(name)) > 1e-2
