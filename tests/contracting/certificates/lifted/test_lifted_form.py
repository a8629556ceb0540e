"""Roots of forms: those with a known answer, what is proved of them, and the contract of a metric."""

from __future__ import annotations

import math

import pytest
import torch

from contracting.certificates import LiftedForm, with_proofs
from contracting.certificates.lifted.monomials import lift
from contracting.contracts import MetricContract
from contracting.contracts.base import draw
from contracting.errors import InputError, PreconditionError
from contracting.metrics import FullP

pytest.importorskip("cvxpy")
pytest.importorskip("clarabel")


def quartic(middle: float) -> LiftedForm:
    """x⁴ + 2·middle·x²y² + y⁴: convex iff 0 ≤ middle ≤ 3, and on the circle between 1 and (1 + middle)/2."""
    return LiftedForm(torch.diag(torch.tensor([1.0, middle, 1.0], dtype=torch.float64)), 2)


CONVEX = with_proofs(quartic(2.9))


class TestLiftedForm(MetricContract):
    def metric(self) -> LiftedForm:
        return CONVEX

    def test_the_dual_is_the_dual(self) -> None:
        """There is none."""
        with pytest.raises(PreconditionError, match=r"\bdual\b"):
            self.metric().dual()


def test_the_power_of_a_quadratic_norm_is_that_norm() -> None:
    G, M = draw(2, 3, 3)
    Q = G @ G.mT + torch.eye(3, dtype=torch.float64)
    moved, quadratic = lift(3, 2).map(torch.linalg.cholesky((Q + Q.mT) / 2).mT), FullP((Q + Q.mT) / 2)
    P = moved.mT @ moved
    form = LiftedForm((P + P.mT) / 2, 2)
    s = draw(20, 3, seed=1) * torch.logspace(-150, 150, 20, dtype=torch.float64)[:, None]
    torch.testing.assert_close(form.norm(s), quadratic.norm(s))
    torch.testing.assert_close(form.operator_norm(M), quadratic.operator_norm(M))
    torch.testing.assert_close(form.matrix_measure(M), quadratic.matrix_measure(M))
    low, high = torch.linalg.eigvalsh(Q)[[0, -1]].sqrt().tolist()
    assert form.bounds == pytest.approx((low, high), rel=1e-9) and form.bounds[0] <= low and high <= form.bounds[1]


@pytest.mark.parametrize("middle", [0.1, 1.0, 2.9])
def test_what_is_convex_is_proved_to_be(middle: float) -> None:
    form = with_proofs(quartic(middle))
    assert form.convex and "a norm" in form.words and form.to(torch.zeros(1)).convex
    assert form.rescaled(torch.tensor([1e3, 1e-3], dtype=torch.float64)).convex
    lowest, highest = sorted((1.0, (1 + middle) / 2))
    assert form.overshoot == pytest.approx((highest / lowest) ** 0.25, abs=1e-6)
    assert form.overshoot >= (highest / lowest) ** 0.25


def test_what_is_not_convex_is_not_proved_to_be() -> None:
    form = with_proofs(quartic(3.1))
    assert not form.convex and "overshoot ≤ 1.2" in form.words
    s = torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    bent = with_proofs(quartic(8.0))  # so much that the triangle inequality fails between two points of the diagonals
    first, second = s.sum(0) + 0.3 * s[0], s.sum(0) * torch.tensor([1.0, -1.0]) + 0.3 * s[0]
    assert bent.norm(first + second) <= bent.norm(first) + bent.norm(second)
    turned = torch.stack([s.sum(0), s.sum(0) + torch.tensor([0.4, -0.4])])
    assert not bent.convex and math.isfinite(bent.overshoot) and bool((bent.norm(turned) > 0).all())


def test_a_forged_proof_proves_nothing() -> None:
    """Of what is said to be a relation only the part without a form counts."""
    form = quartic(3.1)
    huge = 1e3 * torch.eye(4, dtype=torch.float64)
    forged = LiftedForm(form.matrix, 2, huge, torch.stack(2 * [1e3 * torch.eye(3, dtype=torch.float64)]))
    assert not forged.convex
    assert forged.bounds[0] <= 1.0 and forged.bounds[1] >= 2.05**0.25


def test_without_proofs_the_eigenvalues_bound_the_overshoot() -> None:
    assert quartic(2.9).overshoot == pytest.approx(2.9**0.25)


def test_what_is_no_form_is_refused() -> None:
    P = torch.eye(7, dtype=torch.float64)
    for matrix, degree, name in ((P, 2, "matrix"), (-P[:3, :3], 2, "matrix"), (P[:3, :3], 0, "degree")):
        with pytest.raises(InputError, match=rf"\b{name}\b"):
            LiftedForm(matrix, degree)
    with pytest.raises(InputError, match=r"\bcurvature\b"):
        LiftedForm(P[:3, :3], 2, curvature=P)
