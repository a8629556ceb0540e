"""Every method that needs no weight on fields whose steady states are known, and on fields that have none."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from contracting import (
    BogackiShampine,
    DormandPrince,
    Method,
    NewtonKrylov,
    SemismoothNewton,
    SolveError,
    Status,
    Stop,
    steady_state,
)
from contracting.contracts import SteadyStateContract
from contracting.contracts.base import DOUBLE, draw
from tests.contracting.steady_states import known_fields

KNOWN = {
    name: kind
    for name, kind in vars(known_fields).items()
    if isinstance(kind, type) and issubclass(kind, SteadyStateContract) and not kind.__abstractmethods__
    and kind is not known_fields.Weighted
}  # fmt: skip
PROMISES = [name for name in dir(SteadyStateContract) if name.startswith("test_")]
METHODS = known_fields.Scalar().methods()
FOLLOW = {name: method for name, method in METHODS.items() if "Newton" not in name and "torchdiffeq" not in name}


def test_there_are_enough() -> None:
    assert len(KNOWN) >= 20 and len(METHODS) >= 12


@pytest.mark.parametrize("promise", PROMISES)
@pytest.mark.parametrize("field", KNOWN)
def test_known_answers(field: str, promise: str) -> None:
    getattr(KNOWN[field](), promise)()


class WrongAnswer(known_fields.Polynomial):
    def answer(self) -> Tensor:
        return super().answer() + 0 * self.off

    off = 0.0

    def field(self) -> object:
        field = super().field()
        return lambda s: field(s - 1e-3)


class Crowded(known_fields.Scalar):
    def field(self) -> object:
        return lambda s: -s + 0.01 * s.mean(0)


@pytest.mark.parametrize("broken", [WrongAnswer, Crowded])
def test_the_contract_notices_what_is_wrong(broken: type[SteadyStateContract]) -> None:
    with pytest.raises((AssertionError, ValueError)):
        broken().test_every_method_finds_it()


def van_der_pol(s: Tensor) -> Tensor:
    """Three rows; the first runs backwards, so that the cycle repels and zero attracts."""
    x, y = s.T
    forward = torch.stack([y, (1 - x * x) * y - x], 1)
    return torch.where(torch.tensor([True, False, False])[:, None], -forward, forward)


@pytest.mark.parametrize("name", FOLLOW)
def test_who_follows_the_flow_fails_on_a_cycle_row_by_row(name: str) -> None:
    s0 = torch.tensor([[0.5, 0.2], [0.5, 0.2], [2.0, 0.0]], dtype=DOUBLE)
    stop = Stop(max_steps=800, patience=150) if name in known_fields.Scalar().explicit() else Stop(max_steps=40)
    method = FOLLOW[name]
    if name == "BackwardEuler":
        method = type(method)(step=0.5)
    found = steady_state(van_der_pol, s0, method=method, stop=stop, throw=False)
    failures = {Status.STALLED, Status.MAX_STEPS, Status.DIVERGED, Status.NONFINITE, Status.REPELLING}
    assert {Status(int(code)) for code in found.status[1:]} <= failures
    if name != "BackwardEuler":  # of which forty steps are not enough
        assert found.status[0] == Status.CONVERGED
        assert torch.allclose(found.z[0], torch.zeros(2, dtype=DOUBLE), atol=1e-7)
    value = torch.linalg.vector_norm(van_der_pol(found.z), dim=-1)
    assert torch.allclose(value, found.residual)


@pytest.mark.parametrize("method", [SemismoothNewton(), NewtonKrylov()])
def test_newton_finds_the_state_that_repels_and_says_so(method: Method) -> None:
    s0 = torch.tensor([[0.5, 0.2]] * 3, dtype=DOUBLE)
    found = steady_state(van_der_pol, s0, method=method)
    assert bool(found.converged.all())
    assert torch.allclose(found.abscissa, torch.tensor([-0.5, 0.5, 0.5], dtype=DOUBLE))
    assert found.repelling.tolist() == [False, True, True]
    refused = steady_state(van_der_pol, s0, method=method, stable=True, throw=False)
    assert refused.status.tolist() == [Status.CONVERGED, Status.REPELLING, Status.REPELLING]
    with pytest.raises(SolveError) as error:
        steady_state(van_der_pol, s0, method=method, stable=True)
    assert error.value.solution is not None and torch.equal(error.value.solution.status, refused.status)


NOWHERE = {
    "blows up": lambda s: 1 + s * s,
    "runs away": lambda s: torch.ones_like(s),
    "slows down for ever": lambda s: torch.exp(-s),
    "nearly stops": lambda s: 1e-9 + 1e-6 * s * s,
}


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("nowhere", NOWHERE)
def test_where_there_is_no_steady_state_none_is_found(nowhere: str, name: str) -> None:
    s0 = torch.tensor([[0.5], [-0.5]], dtype=DOUBLE)
    if "torchdiffeq" in name and nowhere != "runs away":
        pytest.skip("torchdiffeq takes minutes to give up")
    found = steady_state(NOWHERE[nowhere], s0, method=METHODS[name], stop=Stop(max_steps=40), throw=False)
    assert not bool(found.converged.any()), found.summary()
    assert bool(found.z.isfinite().all())


@pytest.mark.parametrize("method", [DormandPrince(), BogackiShampine()])
def test_a_row_that_fails_spoils_no_other(method: Method) -> None:
    offset = torch.tensor([[-1.0], [1.0], [-4.0]], dtype=DOUBLE)
    found = steady_state(lambda s: -offset - s * s, torch.ones(3, 1, dtype=DOUBLE), method=method, throw=False)
    assert found.converged.tolist() == [True, False, True]
    assert torch.allclose(found.z[[0, 2], 0], torch.tensor([1.0, 2.0], dtype=DOUBLE))


def test_as_a_whole_a_small_entry_is_not_worth_a_look_and_one_by_one_it_is() -> None:
    def field(s: Tensor) -> Tensor:
        return torch.stack([1e6 - s[:, 0], 0.05 * (0.1 - s[:, 1])], 1)

    s0 = draw(2, 2)
    exact = torch.tensor([1e6, 0.1], dtype=DOUBLE).expand(2, -1)
    whole, single = (steady_state(field, s0, method=DormandPrince(), each_entry=asked) for asked in (False, True))
    assert float((whole.z - exact)[:, 1].abs().max()) > 1e-6
    assert torch.allclose(single.z, exact, rtol=1e-6)
