"""Constants in ℓ∞ and ℓ1 against closed forms, all slope patterns, and certificates that do not hold."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch

from contracting import CertificateError, InputError
from equilibrium import certified_lipschitz, explicit_weights
from equilibrium.lipschitz import Elementwise, LipschitzSystem, Norm, RowByRow, check_lipschitz, lipschitz_system

F64 = torch.float64
ORDER = {Norm.L1: 1, Norm.LINF: float("inf")}


def drawn(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def system_of(seed: int, *, slopes: tuple[float, float] = (0.0, 1.0), loop: float = 0.5) -> LipschitzSystem:
    W = loop * drawn(seed, 5, 5) / 5**0.5 - 0.3 * torch.eye(5, dtype=F64)
    U, C, D = drawn(seed + 1, 5, 4), drawn(seed + 2, 3, 5), drawn(seed + 3, 3, 4)
    return replace(lipschitz_system(explicit_weights(W, U, C, feedthrough=D if seed % 2 else None)), slopes=slopes)


def largest(system: LipschitzSystem, norm: Norm) -> float:
    """The largest norm of C(I − SW)⁻¹SU + D over all patterns of extreme slopes."""
    found, eye = 0.0, torch.eye(system.size, dtype=F64)
    for corner in itertools.product(system.slopes, repeat=system.size):
        S = torch.diag(torch.tensor(corner, dtype=F64))
        J = system.C @ torch.linalg.solve(eye - S @ system.W, S @ system.U) + system.D
        found = max(found, float(torch.linalg.matrix_norm(J, ORDER[norm])))
    return found


@pytest.mark.parametrize("norm", list(ORDER))
@pytest.mark.parametrize("slopes", [(0.0, 1.0), (0.2, 0.9)])
def test_between_all_slope_patterns_and_the_entrywise_bound(norm: Norm, slopes: tuple[float, float]) -> None:
    ratios = []
    for seed in range(4):
        system = system_of(seed, slopes=slopes)
        certificate = RowByRow(norm=norm).certify(system)
        truth = largest(system, norm)
        assert truth <= certificate.bound < 1.3 * truth
        assert check_lipschitz(certificate, system) > 0
        ratios.append(certificate.bound / Elementwise(norm=norm).certify(system).bound)
    assert sum(ratios) / len(ratios) < 0.85


@pytest.mark.parametrize("norm", list(ORDER))
def test_one_neuron_and_a_linear_map_have_the_constants_of_their_matrices(norm: Norm) -> None:
    zero = torch.zeros(1, 1, dtype=F64)
    u, c = torch.tensor([[3.0, -1.0, 0.0, 0.5]], dtype=F64), torch.tensor([[2.0], [-5.0]], dtype=F64)
    one = RowByRow(norm=norm).certify(lipschitz_system(explicit_weights(zero, u, c)))
    assert one.bound == pytest.approx(float(torch.linalg.matrix_norm(c @ u, ORDER[norm])), rel=2e-3)
    D = drawn(1, 2, 4)
    weights = explicit_weights(zero, 1e-3 * u, 1e-3 * c, feedthrough=D)
    linear = certified_lipschitz(weights, norm=norm)
    assert linear.bound == pytest.approx(float(torch.linalg.matrix_norm(D, ORDER[norm])), rel=2e-3)


def test_the_constant_in_l1_is_that_of_the_transposed_map() -> None:
    system = system_of(3)
    W, U, C, D = (matrix.mT for matrix in (system.W, system.U, system.C, system.D))
    other = lipschitz_system(explicit_weights(W, C, U, feedthrough=D))
    assert RowByRow(norm=Norm.L1).certify(system).bound == pytest.approx(RowByRow().certify(other).bound, rel=1e-9)


@pytest.mark.parametrize("norm", list(ORDER))
def test_a_map_that_does_nothing_has_the_constant_zero(norm: Norm) -> None:
    weights = explicit_weights(0.1 * drawn(0, 3, 3), drawn(1, 3, 2), torch.zeros(2, 3, dtype=F64))
    assert certified_lipschitz(weights, norm=norm).bound < 1e-9


@pytest.mark.parametrize("norm", list(ORDER))
def test_the_checker_refuses_what_does_not_hold(norm: Norm) -> None:
    system = system_of(1)
    good = RowByRow(norm=norm).certify(system)
    assert good.rows is not None and good.input_units is not None
    units, worst = good.input_units.clone(), max(good.rows, key=lambda row: row.bound)
    units[:, 0] *= 1.1
    rows = tuple(replace(row, bound=0.99 * row.bound) if row is worst else row for row in good.rows)
    for wrong in (
        replace(good, bound=good.bound * (1 - 1e-6)),
        replace(good, norm=Norm.L2),
        replace(good, norm=Norm.L1 if norm is Norm.LINF else Norm.LINF),
        replace(good, rows=rows),
        replace(good, rows=good.rows[::-1]),
        replace(good, rows=good.rows[1:], input_units=good.input_units[1:]),
        replace(good, input_units=units),
        replace(good, input_units=None),
        replace(good, rows=tuple(replace(row, slopes=(0.0, 0.5)) for row in good.rows), slopes=(0.0, 0.5)),
    ):
        with pytest.raises(CertificateError):
            check_lipschitz(wrong, system)
    with pytest.raises(CertificateError):
        check_lipschitz(good, replace(system, W=-system.W))
    with pytest.raises(InputError, match="norm"):
        RowByRow(norm=Norm.L2)
