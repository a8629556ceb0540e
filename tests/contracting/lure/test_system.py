"""Lur'e systems as matrices: shapes, special cases and bad input."""

from __future__ import annotations

import pytest
import torch

from contracting import InputError, PreconditionError
from contracting.certificates.systems import FiringRateSystem, HopfieldSystem
from contracting.lure.system import LureSystem


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_firing_rate_and_hopfield_are_instances() -> None:
    W, eye, zero = drawn(4, 4), torch.eye(4).double(), torch.zeros(4, 4).double()
    slopes = torch.rand(7, 4, dtype=torch.float64)
    firing_rate = LureSystem(A=-eye, B=eye, C=W, D=zero)
    hopfield = LureSystem(A=-eye, B=W, C=eye, D=zero)
    assert torch.allclose(firing_rate.jacobians(slopes), FiringRateSystem(W=W).jacobians(slopes))
    assert torch.allclose(hopfield.jacobians(slopes), HopfieldSystem(W=W).jacobians(slopes))
    assert torch.allclose(firing_rate.steady_weight, W) and torch.allclose(hopfield.steady_weight, W)


def test_an_implicit_loop_has_the_jacobian_of_its_field() -> None:
    A, B, C, D = drawn(3, 3), drawn(3, 5, seed=1), drawn(5, 3, seed=2), 0.1 * drawn(5, 5, seed=3)
    system, slopes = LureSystem(A=A, B=B, C=C, D=D), torch.rand(5, dtype=torch.float64)
    w = torch.linalg.inv(torch.diag(1 / slopes) - D) @ C  # w = J(Cs + Dw)
    assert torch.allclose(system.jacobians(slopes), A + B @ w)


def test_a_singular_linear_part_has_no_single_steady_state() -> None:
    zero = torch.zeros(2, 2).double()
    with pytest.raises(PreconditionError, match="A"):
        _ = LureSystem(A=zero, B=drawn(2, 2), C=drawn(2, 2), D=zero).steady_weight


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"A": torch.zeros(2, 3)}, "A"),
        ({"B": torch.zeros(3, 3)}, "B"),
        ({"C": torch.zeros(2, 2, 1)}, "C"),
        ({"D": torch.full((3, 3), torch.nan)}, "D"),
        ({"D12": torch.zeros(3, 4), "B2": torch.zeros(2, 5)}, "D12"),
        ({"slopes": (0.5, 0.2)}, "slopes"),
        ({"slopes": (torch.zeros(3), torch.full((3,), 1.5))}, "slopes"),
        ({"hint": torch.zeros(3)}, "hint"),
    ],
)
def test_bad_matrices_are_refused_by_name(changes: dict[str, object], name: str) -> None:
    good: dict[str, object] = {"A": drawn(2, 2), "B": drawn(2, 3), "C": drawn(3, 2), "D": drawn(3, 3)}
    with pytest.raises(InputError, match=name):
        LureSystem(**{**good, **changes})  # type: ignore[arg-type]


def test_slopes_change_the_jacobian_along_one_line_each() -> None:
    A, B, C, D = drawn(3, 3), drawn(3, 5, seed=1), drawn(5, 3, seed=2), 0.1 * drawn(5, 5, seed=3)
    system, slopes = LureSystem(A=A, B=B, C=C, D=D), torch.rand(5, dtype=torch.float64)
    left, right = system.slope_factors(slopes)
    found = torch.autograd.functional.jacobian(system.jacobians, slopes)
    assert torch.allclose(found, left[:, None, :] * right.mT[None, :, :])


def test_other_units_are_the_same_system() -> None:
    A, B, C, D = drawn(3, 3), drawn(3, 5, seed=1), drawn(5, 3, seed=2), 0.1 * drawn(5, 5, seed=3)
    system, slopes = LureSystem(A=A, B=B, C=C, D=D), torch.rand(5, dtype=torch.float64)
    states, neurons = torch.tensor([2.0, 0.5, 8.0]).double(), torch.tensor([4.0, 1.0, 0.25, 2.0, 16.0]).double()
    moved = system.rescaled(states, neurons)
    assert torch.allclose(moved.jacobians(slopes), system.jacobians(slopes) * states[:, None] / states)
    assert torch.equal(system.rescaled(states).D, D)
