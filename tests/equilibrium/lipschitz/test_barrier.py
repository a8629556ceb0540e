"""The barrier and its derivatives against automatic differentiation of the whole matrix, and both ways of descent."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from equilibrium.lipschitz import FirstOrder, InteriorPoint, LipschitzSystem, check_lipschitz, lipschitz_system
from equilibrium.lipschitz.barrier import Barrier, with_unit_slopes
from equilibrium.lipschitz.gain import gain
from equilibrium.lipschitz.start import prepared
from equilibrium.parameterizations import Monotone

SLOPES = [(0.0, 1.0), (0.0, 0.25), (0.2, 0.7)]


def random_system(
    seed: int, sizes: tuple[int, int, int], *, feedthrough: bool = True, size: float = 0.5, epsilon: float = 0.1
) -> LipschitzSystem:
    torch.manual_seed(seed)
    free = Monotone(*sizes, lipschitz=1.0, feedthrough=feedthrough, epsilon=epsilon, dtype=torch.float64)
    with torch.no_grad():
        for parameter in free.parameters():
            parameter.copy_(size * torch.randn_like(parameter))
        return lipschitz_system(free.explicit())


def started(system: LipschitzSystem) -> tuple[Barrier, LipschitzSystem, Tensor]:
    small, lam = prepared(system, None)
    return Barrier(small, lam, float(gain(small, lam))), small, lam


def whole(small: LipschitzSystem, lam: Tensor, value: float, point: Tensor) -> Tensor:
    """−log det of [[P, −N, Cᵀ], [·, ρ + 2abUᵀΛU, Dᵀ], [·, ·, I]] − Σ log s, in the unscaled coordinates."""
    low, high = small.slopes
    full = torch.diag(value * lam * point[:-1])
    W, U, C, D = small.W, small.U, small.C, small.D
    P = 2 * full - (low + high) * (full @ W + W.mT @ full) + 2 * low * high * W.mT @ full @ W
    N = (low + high) * full @ U - 2 * low * high * W.mT @ full @ U
    corner = value**2 * point[-1] * torch.eye(U.shape[1], dtype=torch.float64) + 2 * low * high * U.mT @ full @ U
    M = torch.cat(
        [
            torch.cat([P, -N, C.mT], 1),
            torch.cat([-N.mT, corner, D.mT], 1),
            torch.cat([C, D, torch.eye(len(C), dtype=torch.float64)], 1),
        ]
    )
    return -torch.logdet(M) - point[:-1].log().sum()


@pytest.mark.parametrize("slopes", SLOPES, ids=str)
@pytest.mark.parametrize("sizes", [(9, 6, 3), (2, 6, 1), (1, 1, 1)], ids=str)
@pytest.mark.parametrize("feedthrough", [False, True])
def test_derivatives_are_those_of_the_whole_matrix(
    slopes: tuple[float, float], sizes: tuple[int, int, int], feedthrough: bool
) -> None:
    system = replace(random_system(0, sizes, feedthrough=feedthrough), slopes=slopes)
    barrier, small, lam = started(system)
    value = float(gain(small, lam))

    def reference(point: Tensor) -> Tensor:
        return whole(small, lam, value, point)

    first = barrier.first_point()
    point = first + 0.1 * torch.rand(len(first), dtype=torch.float64)
    here, R = barrier.value(point)
    assert R is not None
    # the two differ by a constant, the logarithm of the change of coordinates
    assert here - barrier.value(first)[0] == pytest.approx(float(reference(point) - reference(first)), abs=1e-9)
    gradient, parts = barrier.gradient(point, R)
    expected = torch.autograd.functional.jacobian(reference, point)
    assert gradient.allclose(expected, rtol=1e-9, atol=1e-9)
    hessian = barrier.hessian(point, parts)
    assert hessian.allclose(torch.autograd.functional.hessian(reference, point), rtol=1e-8, atol=1e-8)
    # the rest of the barrier is −Σ log sᵢ − inputs·log ρ
    rest = torch.cat([torch.ones(system.size), torch.tensor([barrier.inputs])]).double() / point.square()
    assert (barrier.curvature(point, parts) + rest).allclose(hessian.diagonal(), rtol=1e-10)


def test_outside_of_the_certificates_there_is_no_factor() -> None:
    barrier, _, _ = started(random_system(1, (4, 6, 3)))
    inside = barrier.first_point()
    assert barrier.factor(inside) is not None
    for outside in (-inside, inside * torch.tensor([1.0] * 6 + [1e-9]), 0.1 * inside):
        assert barrier.factor(outside) is None


@pytest.mark.parametrize("slopes", SLOPES, ids=str)
def test_a_map_rewritten_with_unit_slopes_has_the_same_constants(slopes: tuple[float, float]) -> None:
    system = replace(random_system(2, (5, 6, 3)), slopes=slopes)
    W, U, C, D = with_unit_slopes(system)
    unit = replace(system, W=W, U=U, C=C, D=D, slopes=(0.0, 1.0))
    lam = prepared(system, None)[1]
    for factor in (0.5, 1.0, 3.0):
        there = gain(unit, (slopes[1] - slopes[0]) ** 2 * factor * lam)
        assert float(there) == pytest.approx(float(gain(system, factor * lam)), rel=1e-9)


CASES = [(1, 12, 1), (3, 5, 2), (2, 30, 2), (10, 16, 4)]


@pytest.mark.parametrize("sizes", CASES, ids=str)
@pytest.mark.parametrize("feedthrough", [False, True])
def test_first_order_reaches_the_optimum_within_a_thousandth(sizes: tuple[int, int, int], feedthrough: bool) -> None:
    for size in (0.2, 2.0):
        system = random_system(3, sizes, feedthrough=feedthrough, size=size)
        optimum = InteriorPoint().certify(system).bound
        assert 0.99999 * optimum <= FirstOrder().certify(system).bound <= 1.001 * optimum


@pytest.mark.parametrize("feedthrough", [False, True])
def test_the_estimated_gap_is_kept_near_the_boundary_of_condition_one(feedthrough: bool) -> None:
    for hidden, inputs in ((8, 1), (12, 10), (30, 2)):
        system = random_system(6, (inputs, hidden, 2), feedthrough=feedthrough, size=0.05, epsilon=1e-3)
        optimum = InteriorPoint(tolerance=1e-7).certify(system).bound
        gaps = [FirstOrder(tolerance=tolerance).certify(system).bound / optimum - 1 for tolerance in (1e-2, 1e-4)]
        assert -1e-6 <= gaps[1] <= 1e-4
        assert gaps[1] <= gaps[0] <= 1e-2


def test_a_loose_tolerance_stops_early_and_is_still_a_certificate() -> None:
    system = random_system(4, (5, 12, 3))
    loose = FirstOrder(tolerance=0.5).certify(system)
    assert check_lipschitz(loose, system) > 0
    assert FirstOrder().certify(system).bound < loose.bound * (1 - 1e-4)


def test_a_linear_map_is_rated_exactly() -> None:
    system = replace(random_system(5, (4, 6, 3)), slopes=(1.0, 1.0))
    identity = torch.eye(6, dtype=torch.float64)
    truth = torch.linalg.matrix_norm(system.C @ torch.linalg.solve(identity - system.W, system.U) + system.D, 2)
    for finder in (FirstOrder(), InteriorPoint()):
        assert float(truth) <= finder.certify(system).bound < 1.2 * float(truth)
