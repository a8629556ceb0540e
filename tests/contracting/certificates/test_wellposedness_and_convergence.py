"""Condition 1 found or disproved, and convergence for constant input, measured on the flows themselves."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from contracting import FiringRate, ForwardBackwardFlow, Hopfield, PeacemanRachfordFlow, WeightedL2
from contracting.activations.catalogue import ReLU, Tanh
from contracting.certificates import (
    CertificateError,
    Convergence,
    FiringRateSystem,
    HopfieldSystem,
    InclusionSystem,
    abscissa_bound,
    certify,
    check_convergence,
    find_metric,
    fixed_input_convergence,
    rules_out,
)
from contracting.errors import InputError, PreconditionError
from contracting.flows.base import BoundFlow
from tests.contracting.certificates.instances import gaussian, rotation
from tests.problems import monotone_weight, planted


@pytest.mark.parametrize("seed", range(10))
def test_metric_is_found_where_one_exists_though_the_identity_is_none(seed: int) -> None:
    W, lam = monotone_weight(6, seed=seed, skew=1.0, spread=3.0, monotonicity=0.2)
    assert 1 - float(WeightedL2.identity(6, dtype=torch.float64).matrix_measure(W)) < 0
    found = find_metric(W)
    assert found.metric is not None and not found.impossible
    assert found.monotonicity >= 0.19 and found.margin > 0
    assert 1 - float(found.metric.matrix_measure(W)) >= found.monotonicity - 1e-12
    assert find_metric(W, start=lam).monotonicity >= 0.2 - 1e-9


def test_impossibility_is_proved_and_the_proof_is_checked() -> None:
    proved = 0
    for seed in range(12):
        W = gaussian(6, seed, 1.7)
        if seed % 2:
            W = W - torch.diag(W.diagonal())  # so that no single entry is enough
        found = find_metric(W)
        assert (found.metric is None) or not found.impossible
        proved += found.impossible
        if found.witness is not None:
            assert rules_out(found.witness, W)
            assert not rules_out(found.witness, W - 5 * torch.eye(6, dtype=torch.float64))
            assert not rules_out(found.witness, 0 * W)
        assert found.metric is not None or found.impossible  # with an SDP at hand nothing stays open here
    assert proved > 4


def test_the_dual_of_the_program_proves_what_no_submatrix_shows() -> None:
    """A P-matrix, every principal submatrix stable, that no diagonal metric makes monotone."""
    W = torch.tensor([[0.0, 1.6, 0.0], [0.0, 0.0, 1.6], [-1.6, 0.0, 0.0]], dtype=torch.float64)
    found = find_metric(-W)
    assert found.impossible == (found.metric is None)
    cyclic = 2.4 * W / 1.6
    assert find_metric(cyclic).impossible


def test_without_a_metric_the_best_value_seen_is_reported() -> None:
    """At most 0, and attained in some metric; also where it is impossible, and where the checker refuses."""
    W = gaussian(6, 0, 1.7)
    for weight in (W + 2 * torch.eye(6, dtype=torch.float64), W - torch.diag(W.diagonal()) + gaussian(6, 1, 3.0)):
        found = find_metric(weight)
        assert found.metric is None and found.impossible
        identity = 1 - float(WeightedL2.identity(6, dtype=torch.float64).matrix_measure(weight))
        assert identity - 0.1 <= found.monotonicity < -0.1
    barely = torch.tensor([[0.0, 1.0], [1.0, 0.0]], dtype=torch.float64)  # m = 0 exactly
    assert find_metric(barely).metric is None
    assert -1e-9 <= find_metric(barely).monotonicity <= 0


def test_edge_cases_of_witnesses() -> None:
    W = torch.eye(2, dtype=torch.float64)
    assert find_metric(W).impossible
    assert "no diagonal metric" in str(find_metric(W))
    assert not rules_out(torch.zeros(2, 1, dtype=torch.float64), W)
    assert not rules_out(torch.ones(2, dtype=torch.float64), W)
    assert find_metric(rotation(50.0)).monotonicity == pytest.approx(1, abs=1e-9)
    assert "holds" in str(find_metric(rotation(50.0)))
    with pytest.raises(InputError, match=r"\bW\b"):
        find_metric(torch.full((2, 2), float("nan")))


def trajectory(flow: BoundFlow, state: Tensor, *, time: float, steps: int) -> list[Tensor]:
    states, h = [state], time / steps
    for _ in range(steps):
        k1 = flow(0.0, state)
        k2 = flow(0.0, state + h / 2 * k1)
        k3 = flow(0.0, state + h / 2 * k2)
        state = state + h / 6 * (k1 + 2 * k2 + 2 * k3 + flow(0.0, state + h * k3))
        states.append(state)
    return states


@pytest.mark.parametrize("flow", [FiringRate(), Hopfield(), ForwardBackwardFlow(step=0.05)], ids=repr)
@pytest.mark.parametrize("skew", [0.5, 8.0])
def test_flows_converge_as_certified_even_where_they_do_not_contract(flow: FiringRate, skew: float) -> None:
    W, lam = monotone_weight(5, seed=6, skew=skew, spread=0.5, monotonicity=0.8)
    problem, z = planted(Tanh(), W, lam, batch=16, seed=2)
    bound = flow.bind(problem)
    certificate = fixed_input_convergence(bound)
    assert isinstance(certificate, Convergence) and certificate.margin > 0
    target = bound.init(z)
    start = target + 3 * torch.randn_like(target)
    for index, state in enumerate(trajectory(bound, start, time=8.0, steps=100)):
        allowed = certificate.overshoot * torch.exp(torch.tensor(-certificate.rate * index * 0.08))
        distance, first = certificate.metric.norm(state - target), certificate.metric.norm(start - target)
        assert bool((distance <= allowed * first * (1 + 1e-6)).all())
    if skew > 5 and not isinstance(flow, ForwardBackwardFlow):
        assert certify(bound).rate < 0


@pytest.mark.parametrize("system", [HopfieldSystem, FiringRateSystem])
def test_convergence_is_not_contraction_and_forgeries_fail(
    system: type[HopfieldSystem] | type[FiringRateSystem],
) -> None:
    W, lam = monotone_weight(5, seed=7, skew=1.0, spread=0.5, monotonicity=0.4)
    flow = system(W=W, hint=lam)
    given, found = fixed_input_convergence(flow, metric=WeightedL2(lam)), fixed_input_convergence(flow)
    assert given.rate == pytest.approx(0.36) and "constant input" in given.assumption
    assert given.rate < found.rate <= abscissa_bound(flow).rate
    assert isinstance(given.metric, WeightedL2)
    assert torch.allclose(given.metric.weights / lam, given.metric.weights[:1] / lam[:1])
    assert found.multiplier is not None and found.integrals is not None and given.integrals is not None
    for certificate in (given, found):
        for forged in (
            replace(certificate, rate=certificate.rate + 0.05),
            replace(certificate, overshoot=certificate.overshoot * 0.999),
            replace(certificate, overshoot=0.5),
            replace(certificate, rate=1.01),
            replace(certificate, slopes=(0.0, 0.5)),
            replace(certificate, metric=WeightedL2(1 / lam)),
            replace(certificate, integrals=-certificate.integrals),
            replace(certificate, integrals=None),
            replace(certificate, multiplier=None),
        ):
            with pytest.raises(CertificateError):
                check_convergence(forged, flow)
        with pytest.raises(CertificateError):
            check_convergence(certificate, replace(flow, W=2 * W + gaussian(5, 0)))
        with pytest.raises(CertificateError):
            check_convergence(certificate, InclusionSystem(W=W))
    problem, _ = planted(ReLU(), W, lam, batch=1, seed=0)
    with pytest.raises(PreconditionError, match=r"\bcertify\b"):
        fixed_input_convergence(PeacemanRachfordFlow(step=1.0).bind(problem))


def test_where_condition_1_fails_convergence_is_refused_or_open() -> None:
    with pytest.raises(CertificateError, match="Condition 1"):
        fixed_input_convergence(HopfieldSystem(W=gaussian(4, 1, 5.0)), metric=WeightedL2(torch.ones(4)))
    with pytest.raises(PreconditionError, match=r"\bmetric\b"):
        fixed_input_convergence(HopfieldSystem(W=2 * torch.eye(3, dtype=torch.float64)))


@pytest.mark.parametrize("system", [HopfieldSystem, FiringRateSystem])
def test_convergence_is_never_slower_than_contraction_and_not_capped_at_one_half(
    system: type[HopfieldSystem] | type[FiringRateSystem],
) -> None:
    for W in (torch.zeros(3, 3, dtype=torch.float64), gaussian(4, 3, 0.5), rotation(1.0)):
        flow = system(W=W)
        certificate = fixed_input_convergence(flow)
        assert certify(flow).rate - 1e-9 <= certificate.rate <= abscissa_bound(flow).rate
        assert certificate.rate > 0.5
    assert fixed_input_convergence(system(W=torch.zeros(3, 3, dtype=torch.float64))).overshoot == 1


def test_the_rate_of_a_rotation_is_the_one_of_its_closed_form() -> None:
    """W = k[[0, 1], [−1, 0]], K = I: T = 0 is best and 2(1 − c)c = k(2c − 1); the contraction rate there is 1 − k/2."""
    for k in (4.0, 10.0):
        c = (-(k - 1) + ((k - 1) ** 2 + 2 * k) ** 0.5) / 2
        certificate = fixed_input_convergence(HopfieldSystem(W=rotation(k)))
        assert 0.5 < 0.98 * c - 2e-3 <= certificate.rate <= c + 1e-6


@pytest.mark.parametrize("system", [HopfieldSystem, FiringRateSystem])
@pytest.mark.parametrize("n", [2, 200])
def test_uneven_metrics_of_any_size_are_proved(
    system: type[HopfieldSystem] | type[FiringRateSystem], n: int
) -> None:
    """W = ½I attains its norm and its m in every direction."""
    spread = torch.exp2(torch.linspace(-1, 1, n, dtype=torch.float64))  # uneven after scaling by powers of two
    for lam in (torch.ones(n, dtype=torch.float64), spread):
        half = system(W=0.5 * torch.eye(n, dtype=torch.float64))
        assert fixed_input_convergence(half, metric=WeightedL2(lam)).rate == pytest.approx(0.45, abs=1e-9)
