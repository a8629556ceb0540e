"""The transform by matrix products against the library's, and the layouts of rows."""

from __future__ import annotations

import math

import pytest
import torch

from contracting.maps import transform
from contracting.maps.convolution import CircularConvolution
from contracting.maps.frequencies import kernel_gradient, symbol_of

GRIDS = [(1,), (2,), (7,), (8,), (1, 1), (1, 5), (5, 1), (2, 3), (4, 6), (9, 4), (6, 6)]


def images(grid: tuple[int, ...], *, channels: int = 3, rows: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(rows, channels, *grid, generator=generator, dtype=torch.float64)


def places(grid: tuple[int, ...], *, sign: int = 1) -> torch.Tensor:
    """Where the frequencies of a spectrum, or their negatives, are in the library's transform, (frequencies,)."""
    height, width = transform.sides(grid)
    k, m = (sign * transform.distinct(grid)).unbind(1)
    return k % height * width + m % width


@pytest.mark.parametrize("grid", GRIDS)
def test_a_spectrum_has_one_of_every_pair_of_conjugates(grid: tuple[int, ...]) -> None:
    both = torch.cat([places(grid), places(grid, sign=-1)])
    assert both.unique().tolist() == list(range(math.prod(grid)))
    assert len(places(grid).unique()) == transform.frequencies(grid)
    assert float(transform.shares(grid).sum()) == pytest.approx(1.0)


@pytest.mark.parametrize("longest", [0, 64])
@pytest.mark.parametrize("grid", GRIDS)
def test_the_spectrum_is_that_of_the_library_and_comes_back(
    grid: tuple[int, ...], longest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transform, "_LONGEST", longest)
    x = images(grid)
    dims = tuple(range(2, 2 + len(grid)))
    expected = torch.fft.fftn(x, dim=dims).flatten(2)[..., places(grid)].permute(2, 1, 0)
    found = transform.spectrum(x, grid)
    assert found.shape == (transform.frequencies(grid), 3, 2)
    assert torch.allclose(found, expected, atol=1e-12)
    identity = torch.eye(3, dtype=torch.complex128).expand(len(found), 3, 3)
    assert torch.allclose(transform.product(x.flatten(1), transform.real_form(identity), grid), x, atol=1e-12)
    # Parseval, with the shares
    y = images(grid).flip(0) + 1
    inner = (transform.shares(grid)[:, None, None] * (found.conj() * transform.spectrum(y, grid)).real).sum()
    assert float(inner) == pytest.approx(float((x * y).sum()), rel=1e-12)


@pytest.mark.parametrize("rows", [0, 1, 5])
def test_both_layouts_of_rows_give_the_same_products(rows: int) -> None:
    kernel = torch.randn(20, 20, 5, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    conv = CircularConvolution(kernel / math.sqrt(500), grid=(6, 7))
    z, offset = (images((6, 7), channels=20, rows=rows).flatten(1) for _ in range(2))
    columns = conv.laid_out(z)
    assert torch.equal(columns, z)
    assert rows < 2 or (transform.is_by_neuron(columns) and not transform.is_by_neuron(z))
    for linear in (conv, conv.adjoint, conv.resolvent(0.1)):
        found = linear.apply(columns)
        assert transform.is_by_neuron(found) == transform.is_by_neuron(columns)
        assert torch.allclose(found, linear.apply(z), atol=1e-12)
        expected = linear.apply(z) + offset
        out = torch.empty_like(columns)
        for affine in (
            linear.affine(z, offset),
            linear.affine(columns, conv.laid_out(offset)),
            linear.affine(columns, offset),
            linear.affine(columns, conv.laid_out(offset), out=out),
        ):
            assert torch.allclose(affine, expected, atol=1e-12)
        assert torch.allclose(out, expected, atol=1e-12)


@pytest.mark.parametrize("rows", [0, 1, 3, 70])
@pytest.mark.parametrize("grid", [(7,), (2,), (1, 4), (4, 6), (5, 3)])
def test_steps_in_arrays_that_are_used_again_are_those_of_the_matrix(grid: tuple[int, ...], rows: int) -> None:
    kernel = torch.randn(3, 3, *[3] * len(grid), generator=torch.Generator().manual_seed(3), dtype=torch.float64) / 9
    conv = CircularConvolution(kernel, grid=grid).resolvent(0.4)
    W = conv.to_dense()
    u, offset = (conv.laid_out(images(grid, rows=rows).flatten(1) + shift) for shift in (0.0, 0.5))
    start, expected = u.clone(), u

    def reflect(x: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        return torch.abs(x, out=out)

    for _ in range(3):
        expected = expected.abs() @ W.mT + offset
    assert torch.allclose(conv.iterated(reflect, offset, u, 3), expected, atol=1e-12)
    assert torch.equal(u, start)
    assert torch.allclose(conv.affine(u, offset), u @ W.mT + offset, atol=1e-12)


@pytest.mark.parametrize(("grid", "sides"), [((7,), (3,)), ((4,), (7,)), ((5, 4), (3, 5)), ((1, 1), (3, 3))])
def test_the_gradient_of_the_kernel_is_that_of_autograd(grid: tuple[int, ...], sides: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(2)
    kernel = torch.randn(3, 3, *sides, generator=generator, dtype=torch.float64, requires_grad=True)
    z, w = images(grid).flatten(1), images(grid).flatten(1).flip(0) + 0.3
    symbol = transform.real_form(symbol_of(kernel, grid))
    (expected,) = torch.autograd.grad((transform.product(z, symbol, grid).flatten(1) * w).sum(), kernel)
    assert torch.allclose(kernel_gradient(z, w, sides, grid), expected, atol=1e-11)
    z, w = (t[:1, :].clone().requires_grad_() for t in (z, w))
    assert torch.autograd.gradcheck(lambda z, w: kernel_gradient(z, w, sides, grid), (z, w), fast_mode=True)
