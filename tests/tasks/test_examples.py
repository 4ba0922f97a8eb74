"""Examples that networks share, or that each has for itself."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from amortopt.tasks import Examples

SHARED = Examples(torch.randn(7, 3), torch.arange(7))
MANY = Examples(torch.randn(2, 7, 3), torch.arange(14).view(2, 7), shared=False)


def test_examples_need_a_target_for_every_input() -> None:
    with pytest.raises(ValueError, match=r"y: got \(2,\) targets for \(3, 4\) inputs, expected one target"):
        Examples(torch.zeros(3, 4), torch.zeros(2, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"both of shape \[B, N, ...\]"):
        Examples(torch.zeros(2, 3, 4), torch.zeros(2), shared=False)


@pytest.mark.parametrize("mask", [torch.ones(7), torch.ones(6, dtype=torch.bool)])
def test_examples_need_a_mask_of_their_shape(mask: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"mask: got .*, expected bool \(7,\)"):
        Examples(SHARED.x, SHARED.y, mask=mask)


def test_examples_to_changes_real_numbers_only() -> None:
    assert SHARED.to("cpu") is SHARED
    moved = SHARED.to("cpu", torch.float64)
    assert moved.x.dtype == torch.float64 and moved.y.dtype == torch.int64


@pytest.mark.parametrize("index", [torch.tensor([4, 0, 4]), slice(2, 5), torch.arange(7) > 3], ids=str)
def test_examples_take_chooses_alike_for_all_networks(index: torch.Tensor | slice) -> None:
    for examples in (SHARED, MANY):
        taken = examples.take(index)
        assert taken.shared == examples.shared and len(taken) == len(SHARED.y[index])
    assert torch.equal(SHARED.take(index).x, SHARED.x[index])
    assert torch.equal(MANY.take(index).y, MANY.y[:, index])


def test_examples_take_chooses_for_each_network_by_itself() -> None:
    index = torch.tensor([[0, 6], [3, 3]])
    for examples in (SHARED, MANY):
        taken = examples.take(index)
        assert not taken.shared and len(taken) == 2
        for b in range(2):
            assert torch.equal(taken.x[b], (examples.x if examples.shared else examples.x[b])[index[b]])


def test_examples_of_networks_are_theirs() -> None:
    assert SHARED.of(slice(1)) is SHARED
    assert torch.equal(MANY.of(torch.tensor([1])).x, MANY.x[1:])


def test_examples_from_list_pads_and_masks() -> None:
    parts = [(torch.randn(n, 3), torch.arange(1, n + 1)) for n in (2, 4)]
    examples = Examples.from_list(parts)
    assert examples.mask is not None and examples.mask.sum(1).tolist() == [2, 4]
    for b, (x, y) in enumerate(parts):
        assert torch.equal(examples.x[b, : len(x)], x) and torch.equal(examples.y[b, : len(y)], y)
    assert not examples.x[0, 2:].any() and not examples.y[0, 2:].any()
    chunks = list(examples.chunks(3))
    assert [len(chunk) for chunk in chunks] == [3, 1] and torch.equal(chunks[1].mask, examples.mask[:, 3:])


def test_examples_from_list_of_equal_sizes_need_no_mask() -> None:
    assert Examples.from_list([(torch.ones(2, 1), torch.ones(2))] * 3).mask is None


def test_examples_from_list_refuses_empty_networks() -> None:
    with pytest.raises(ValueError, match="parts: got no networks"):
        Examples.from_list([])
    with pytest.raises(ValueError, match=r"parts\[1\]: got 2 inputs and 3 targets"):
        Examples.from_list([(torch.ones(2, 1), torch.ones(2)), (torch.ones(2, 1), torch.ones(3))])


@pytest.mark.parametrize(("count", "least"), [(1, 1), (4, 1), (4, 9), (3, 50), (7, 2), (3, 2)])
def test_portions_are_all_examples_without_padding(count: int, least: int) -> None:
    sizes = torch.tensor([20, 7, 13])
    mask = torch.arange(20) < sizes[:, None]
    many = Examples(torch.randn(3, 20, 4), torch.randint(3, (3, 20)), shared=False, mask=mask)
    portions = many.portions(count, least)
    assert len(portions) == count
    for b, size in enumerate(sizes.tolist()):
        met: set[float] = set()
        for part in portions:
            rows = part.x[b, :, 0] if part.mask is None else part.x[b, part.mask[b], 0]
            assert len(set(rows.tolist())) == len(rows) == max(min(size, least), -(-size // count))
            met |= set(rows.tolist())
        assert met == set(many.x[b, :size, 0].tolist())


def test_portions_depend_on_the_examples_and_not_on_their_order() -> None:
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(100, 3, generator=g), torch.arange(100) % 10
    order = torch.randperm(100, generator=g)
    binary = torch.randn(100, 16, generator=g).sign()
    few, pixels = (
        torch.randint(4, (100, 6), generator=g).float(),
        torch.randint(256, (100, 1, 8, 8), generator=g),
    )
    cases = [
        *((x, y), (x, x[:, :1]), (binary, y), (few, y), (few, few[:, :2]), (pixels, y), (few.long(), y % 2)),
        *(
            (x.repeat(10, 1)[:100] * 0, x),
            (x[:10].repeat(10, 1), x),
            (x[:, 0], x[:, 1]),
            (binary[:, :4], binary),
        ),
        *((1e20 * x, y), (1e-30 * few, few)),
    ]
    for inputs, targets in cases:
        one = Examples(inputs, targets).portions(5, 1)
        two = Examples(inputs[order], targets[order]).portions(5, 1)
        for a, b in zip(one, two, strict=True):
            assert torch.equal(a.x, b.x) and torch.equal(a.y, b.y)
    for part in Examples(x, y).portions(5, 1):
        assert part.y.bincount().tolist() == [2] * 10
    shared, many = Examples(x, y), Examples(x.expand(2, -1, -1), y.expand(2, -1), shared=False)
    for a, b in zip(shared.portions(3, 40), many.portions(3, 40), strict=True):
        assert a.shared and torch.equal(a.x, b.x[1])


@pytest.mark.parametrize(("count", "least"), [(0, 1), (-1, 1), (2, 0), (2.5, 1), (2, True)])
def test_portions_refuse_what_is_no_number(count: Any, least: Any) -> None:
    with pytest.raises(ValueError, match=r"(count|least): got .*, expected a whole number of at least 1"):
        SHARED.portions(count, least)


def test_examples_noisy_adds_seeded_noise_of_the_given_size() -> None:
    clean = Examples(torch.zeros(1000, 40), torch.zeros(1000))
    noisy = [clean.noisy(0.4, torch.Generator().manual_seed(1)).x for _ in range(2)]
    assert torch.equal(noisy[0], noisy[1]) and noisy[0].std().item() == pytest.approx(0.4, rel=0.02)
    assert clean.noisy(0.0) is clean and not clean.x.any()


def test_examples_noisy_refuses_symbols() -> None:
    symbols = Examples(torch.zeros(2, 32, dtype=torch.int64), torch.zeros(2, 32))
    assert symbols.noisy(0.0) is symbols
    with pytest.raises(ValueError, match=r"noise: got 0.1 for inputs of torch.int64, expected 0"):
        symbols.noisy(0.1)


@pytest.mark.parametrize("noise", [-0.1, float("nan"), float("inf")])
def test_examples_noisy_refuses_bad_noise(noise: float) -> None:
    with pytest.raises(ValueError, match="noise"):
        SHARED.noisy(noise)
