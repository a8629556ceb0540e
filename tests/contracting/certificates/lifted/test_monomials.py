"""The lift against its definition: s^{[d]} moves as it is said to, and relations have no form."""

from __future__ import annotations

import pytest
import torch

from contracting.certificates.lifted.monomials import Lift, lift, variables
from contracting.contracts.base import draw
from contracting.errors import InputError

SIZES = [(1, 3), (2, 1), (2, 5), (3, 3), (4, 2)]


@pytest.fixture(params=SIZES, ids=lambda pair: f"n={pair[0]}, d={pair[1]}")
def of(request: pytest.FixtureRequest) -> Lift:
    return lift(*request.param)


def test_the_lift_is_what_it_is_said_to_be(of: Lift) -> None:
    s, A = draw(20, of.size), draw(of.size, of.size, seed=1)
    lifted = of.vectors(s)
    torch.testing.assert_close(lifted.norm(dim=-1), s.norm(dim=-1) ** of.degree)
    torch.testing.assert_close(of.vectors(s @ A.mT), lifted @ of.map(A).mT)
    moved = torch.autograd.functional.jvp(of.vectors, s, s @ A.mT)[1]
    torch.testing.assert_close(moved, lifted @ of.flow(A).mT)
    assert of.flow(torch.stack([A, 2 * A]))[1].equal(2 * of.flow(A))
    assert variables(of.count, of.degree) == of.size


def test_relations_have_no_form_and_nothing_else_has_none(of: Lift) -> None:
    s, M = of.vectors(draw(20, of.size)), draw(of.count, of.count, seed=1)
    none = of.relation(M + M.mT)
    assert float(((s @ none) * s).sum(-1).abs().max()) < 1e-11
    basis = of.relations.reshape(-1, of.count, of.count)
    assert of.count * (of.count + 1) // 2 - len(basis) == len(of.products)
    torch.testing.assert_close(of.relation(basis), basis)
    # a control: of what says the same of all pairs with one product nothing is left
    formed = of.matrix(of.tensor(M + M.mT))
    assert float(formed.abs().max()) > 0.1 and float(of.relation(formed).abs().max()) < 1e-12


def test_the_second_derivative_is_a_form_of_the_directions(of: Lift) -> None:
    (s, y), M, d = draw(2, of.size), draw(of.count, of.count, seed=1), of.degree
    P = M + M.mT
    hessian = torch.autograd.functional.hessian(lambda x: of.vectors(x) @ P @ of.vectors(x), s)
    b = torch.outer(lift(of.size, d - 1).vectors(s), y).flatten()
    torch.testing.assert_close(2 * d * (2 * d - 1) * b @ of.hessian(P) @ b, y @ hessian @ y)


def test_too_many_monomials_are_refused() -> None:
    with pytest.raises(InputError, match=r"\bdegree\b"):
        lift(6, 4)
    assert variables(7, 2) is None
