"""The L1 norm of networks."""

from __future__ import annotations

import torch

from amortopt.functional.networks import l1_norm


def test_l1_norm_equals_a_loop() -> None:
    params = {"a": torch.randn(3, 4, 5), "b": torch.randn(3)}
    expected = [sum(float(p[b].abs().sum()) for p in params.values()) for b in range(3)]
    torch.testing.assert_close(l1_norm(params), torch.tensor(expected))
