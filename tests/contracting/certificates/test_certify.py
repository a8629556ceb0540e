"""One call for every flow; what it certifies is compared with the flow's own Jacobians and with upper bounds."""

from __future__ import annotations

import sys

import pytest
import torch

from contracting import (
    EquilibriumProblem,
    FiringRate,
    ForwardBackwardFlow,
    Hopfield,
    PeacemanRachfordFlow,
    PreconditionError,
)
from contracting.activations.base import Activation
from contracting.activations.catalogue import Identity, LeakyReLU, ReLU, Sigmoid, Tanh
from contracting.certificates import (
    Certificate,
    CertificateError,
    DiagonalMetric,
    FiringRateSystem,
    GivenMetric,
    HopfieldSystem,
    InclusionMetric,
    InclusionSystem,
    LinearSystem,
    ParabolaTest,
    SectorInequality,
    VertexInequalities,
    certificates,
    certify,
    check,
    find_metric,
    forward_backward_system,
    report,
    system_of,
)
from contracting.errors import InputError, MissingExtraError
from contracting.flows.base import Flow
from contracting.maps.convolution import CircularConvolution
from contracting.maps.dense import Dense
from contracting.metrics import WeightedL2
from equilibrium import LBEN
from tests.contracting.certificates.instances import gaussian
from tests.problems import monotone_weight, planted

FLOWS: list[Flow] = [
    FiringRate(),
    Hopfield(),
    ForwardBackwardFlow(),
    ForwardBackwardFlow(step=torch.linspace(0.1, 0.4, 4, dtype=torch.float64)),
    PeacemanRachfordFlow(),
    PeacemanRachfordFlow(step=torch.linspace(0.2, 1.5, 4, dtype=torch.float64)),
]


@pytest.mark.parametrize("activation", [ReLU(), Tanh(), Sigmoid(), LeakyReLU(negative_slope=0.3), Identity()], ids=repr)
@pytest.mark.parametrize("flow", FLOWS, ids=lambda f: type(f).__name__)
def test_no_jacobian_of_the_flow_is_slower_than_its_certificates(flow: Flow, activation: Activation) -> None:
    W, lam = monotone_weight(4, seed=8, skew=1.0, spread=0.7, monotonicity=0.5)
    problem, _ = planted(activation, W, lam, batch=300, seed=1)
    bound = flow.bind(problem)
    jacobians = bound.jacobian(3 * torch.randn(300, 4, dtype=torch.float64))
    found = [method.certify(system_of(bound)) for method in (DiagonalMetric(), ParabolaTest())]
    for certificate in found:
        assert float(certificate.metric.matrix_measure(jacobians).max()) <= -certificate.rate + 1e-9
    assert max(c.rate for c in found) > 0


def test_the_error_bound_holds_and_is_not_vacuous() -> None:
    W, lam = monotone_weight(5, seed=9, skew=0.5, monotonicity=0.8)
    for flow in (FiringRate(), Hopfield(), PeacemanRachfordFlow()):
        problem, z = planted(Tanh(), W, lam, batch=50, seed=1)
        bound = flow.bind(problem)
        target = bound.init(z)
        certificate = certify(bound, ParabolaTest())
        state = target + torch.randn_like(target)
        distance = certificate.metric.norm(state - target)
        ratio = certificate.error_bound(bound, state) / distance
        assert float(ratio.min()) >= 1
        assert float(ratio.min()) < 4
    slow = certify(FiringRateSystem(W=gaussian(3, 0, 9.0)), DiagonalMetric())
    assert not slow.contracting
    with pytest.raises(PreconditionError, match=r"\bpositive\b"):
        slow.error_bound(FiringRate().bind(problem), state)


def test_the_public_face() -> None:
    layer = LBEN(7, 6, 3, contraction_rate=0.3)
    certificate = certify(layer.flow(FiringRate))
    assert isinstance(certificate, Certificate)
    assert certificate.rate >= 0.3 - 1e-5 and certificate.assumption == "slopes in [0, 1]"
    assert certificate.method in str(certificate) and "firing rate" in str(certificate)
    assert check(certificate, system_of(layer.flow(FiringRate))) == certificate.margin
    assert certify(layer.flow(FiringRate), slopes=(0.0, 0.25)).rate > certificate.rate
    assert certify(InclusionSystem(W=gaussian(4, 0, 0.5))).rate > 0


def test_report_orders_certified_true_and_bound() -> None:
    for seed, system in enumerate((FiringRateSystem(W=gaussian(3, 1)), HopfieldSystem(W=gaussian(4, 2)))):
        summary = report(system)
        assert summary.quadratic is not None
        assert all(c.rate <= summary.bound.rate + 1e-9 for c in summary.all)
        for c in summary.all:
            if type(c.metric) is type(summary.quadratic.metric):
                assert c.rate <= summary.quadratic.rate + 1e-4
        assert summary.gap >= -1e-9 and "upper bound" in str(summary), seed
    assert report(InclusionSystem(W=gaussian(4, 1))).gap >= -1e-9
    assert "no norm" in str(report(FiringRateSystem(W=gaussian(12, 0))).bound)


def test_wrong_calls_are_refused_by_name() -> None:
    system = FiringRateSystem(W=gaussian(3, 0))
    with pytest.raises(InputError, match=r"\bmethod\b"):
        certify(system, "parabola")  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"\bflow\b"):
        certify(gaussian(3, 0))  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"\bslopes\b"):
        certify(system, slopes=(0.5, 0.2))
    for slopes in (0.5, (0.5,), (0.0, 0.5, 1.0), "01", torch.tensor([0.0, 1.0])):
        with pytest.raises(InputError, match=r"\bslopes\b"):
            certify(system, slopes=slopes)  # type: ignore[arg-type]
        with pytest.raises(InputError, match=r"\bslopes\b"):
            forward_backward_system(system.W, step=0.5, slopes=slopes)  # type: ignore[arg-type]
    assert certify(system, slopes=(0, 1)).rate == certify(system).rate
    with pytest.raises(InputError, match=r"\bW\b"):
        FiringRateSystem(W=torch.zeros(0, 0))
    with pytest.raises(InputError, match=r"\boptimise\b"):
        ParabolaTest(optimise=-1)
    with pytest.raises(InputError, match=r"\bshape\b"):
        FiringRateSystem(W=torch.zeros(2, 3))
    with pytest.raises(InputError, match=r"\bhint\b"):
        FiringRateSystem(W=gaussian(3, 0), hint=torch.tensor([1.0, -1.0, 1.0]))
    with pytest.raises(PreconditionError):
        certify(InclusionSystem(W=gaussian(3, 0)), ParabolaTest())
    with pytest.raises(PreconditionError):
        certify(system, InclusionMetric())
    with pytest.raises(PreconditionError, match=r"\bn ≤ 10\b"):
        certify(FiringRateSystem(W=gaussian(11, 0)), VertexInequalities())
    with pytest.raises(CertificateError):
        ParabolaTest().certify(FiringRateSystem(W=gaussian(3, 0, 1e200)))
    assert certificates(FiringRateSystem(W=gaussian(3, 0, 1e200)))[0].rate < -1e199


def test_degenerate_weights() -> None:
    for W in (torch.zeros(3, 3), torch.zeros(1, 1), -5 * torch.eye(2), torch.tensor([[0.0, 1e-9], [0.0, 0.0]])):
        for flow in (FiringRateSystem, HopfieldSystem):
            assert certify(flow(W=W)).rate == pytest.approx(1, abs=1e-5)
    assert certify(FiringRateSystem(W=torch.tensor([[0.5]]))).rate == pytest.approx(0.5, abs=1e-6)
    W = torch.tensor([[0.5, 3.0, 0.0], [0.0, 0.5, 3.0], [0.0, 0.0, 0.5]])  # reducible, far from normal
    assert certify(FiringRateSystem(W=W)).rate > 0.4


def test_float32_and_gradients_are_followed_by_float64_certificates() -> None:
    W = gaussian(4, 0, 0.5).float().requires_grad_()
    problem = EquilibriumProblem(linear=Dense(W), q=torch.zeros(2, 4), activation=ReLU())
    certificate = certify(FiringRate().bind(problem))
    assert not any(t.requires_grad for t in vars(certificate.metric).values() if isinstance(t, torch.Tensor))
    assert certificate.rate > 0
    assert certificate.error_bound(FiringRate().bind(problem), torch.ones(2, 4)).dtype == torch.float32


@pytest.mark.parametrize("missing", [("cvxpy", "clarabel"), ("clarabel",), ("cvxpy",)])
def test_certificates_need_no_solver(missing: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """That the library is imported without them, test_importing_the_library_needs_no_extra says."""
    for library in missing:
        monkeypatch.setitem(sys.modules, library, None)
    s = FiringRateSystem(W=0.3 * torch.ones(3, 3))
    assert certify(s).rate > 0 and find_metric(s.W).metric is not None
    assert find_metric(torch.tensor([[0.9, 4.0], [4.0, 0.9]])).metric is None
    with pytest.raises(MissingExtraError, match=r"\[certificates\]"):
        certify(s, SectorInequality())


def test_the_matrix_of_a_convolution_is_that_of_its_kernel_in_double_precision() -> None:
    """Not of its transform rounded to single precision."""
    kernel = 0.1 * torch.randn(8, 8, 9, 9, generator=torch.Generator().manual_seed(0))
    linear = CircularConvolution(kernel, grid=(9, 9))
    problem = EquilibriumProblem(linear=linear, q=torch.zeros(1, linear.size), activation=ReLU())
    W = system_of(FiringRate().bind(problem)).W
    exact = CircularConvolution(kernel.double(), grid=(9, 9)).to_dense()
    assert torch.equal(W, exact)
    assert float((linear.to_dense() - exact).abs().max()) > 1e-9  # what it would have been


def test_a_metric_of_your_own_is_judged_where_it_applies() -> None:
    W, lam = monotone_weight(20, seed=1, skew=1.0, monotonicity=0.3, spread=0.5)
    inclusion = InclusionSystem(W=W)
    # no vertices to enumerate
    assert GivenMetric(metric=WeightedL2(lam)).certify(inclusion).rate == pytest.approx(0.3, abs=1e-9)
    with pytest.raises(PreconditionError, match=r"\b14\b"):
        GivenMetric(metric=WeightedL2(lam)).certify(FiringRateSystem(W=W))
    for system in (inclusion, FiringRateSystem(W=W), LinearSystem(W=W)):
        with pytest.raises(InputError, match=r"\bmetric\b"):
            GivenMetric(metric=WeightedL2(lam[1:])).certify(system)


def test_a_solver_that_always_fails_is_no_best_metric(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("contracting.certificates.lmi.solves", lambda problem: False)
    with pytest.raises(CertificateError):
        VertexInequalities().certify(FiringRateSystem(W=gaussian(3, seed=0)))
