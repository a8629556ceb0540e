"""Flows at another speed and linear flows: certified by the same checker, and every flow says what applies to it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from contracting import (
    Dense,
    DrivenFlow,
    EquilibriumProblem,
    FiringRate,
    ForwardBackwardFlow,
    Hopfield,
    PeacemanRachfordFlow,
    WeightedL2,
)
from contracting.activations.catalogue import ReLU, Tanh
from contracting.certificates import (
    Certificate,
    CertificateError,
    DiagonalMetric,
    ExplicitMetric,
    Finder,
    FiringRateSystem,
    GivenMetric,
    HopfieldSystem,
    InclusionMetric,
    InclusionSystem,
    LinearSystem,
    LyapunovMetric,
    ParabolaTest,
    PolyhedralMetric,
    SectorInequality,
    System,
    VertexInequalities,
    applicable,
    certify,
    check,
    check_convergence,
    fixed_input_convergence,
    report,
    system_of,
    upper_bound,
)
from contracting.errors import InputError, PreconditionError
from contracting.flows.base import BoundFlow, Flow
from contracting.flows.fields import LinearFlow, NeuralFlow
from contracting.flows.speed import DouglasRachfordFlow, ScaledFlow, TimeScaledForwardBackward
from contracting.metrics import FullP, WeightedL1, WeightedLinf
from tests.contracting.certificates.instances import gaussian
from tests.problems import monotone_weight, planted

F64 = torch.float64
SCALED: list[tuple[Flow, Flow, float]] = [
    (DouglasRachfordFlow(step=0.7), PeacemanRachfordFlow(step=0.7), 0.5),
    (TimeScaledForwardBackward(step=0.05), ForwardBackwardFlow(step=0.05), 20.0),
]
METHODS: list[Finder] = [
    DiagonalMetric(),
    ParabolaTest(),
    PolyhedralMetric(norm=WeightedLinf),
    PolyhedralMetric(norm=WeightedL1),
    SectorInequality(),
    VertexInequalities(),
]


def bound(flow: Flow, *, rows: int = 1) -> BoundFlow:
    W, lam = monotone_weight(4, seed=8, skew=1.0, spread=0.7, monotonicity=0.5)
    return flow.bind(planted(Tanh(), W, lam, batch=rows, seed=1)[0])


@pytest.mark.parametrize("method", METHODS, ids=lambda m: f"{m.name} {getattr(m, 'norm', type(m)).__name__}")
@pytest.mark.parametrize(("scaled", "inner", "speed"), SCALED, ids=["Douglas–Rachford", "time-scaled"])
def test_rates_scale_with_the_speed_and_forgeries_fail(
    scaled: Flow, inner: Flow, speed: float, method: Finder
) -> None:
    flow, plain = bound(scaled, rows=200), bound(inner)
    certificate, unit = certify(flow, method), certify(plain, method)
    assert certificate.rate == pytest.approx(speed * unit.rate, abs=1e-6 * speed)
    system = system_of(flow)
    assert system.speed == speed and f"at speed {speed:g}" in certificate.flow
    assert check(certificate, system) == certificate.margin > 0
    # no Jacobian of the flow as it runs is slower, and the certificate is not far off
    jacobians = flow.jacobian(3 * torch.randn(200, 4, dtype=F64))
    assert float(certificate.metric.matrix_measure(jacobians).max()) <= -certificate.rate + 1e-9
    other = PeacemanRachfordFlow(step=3.0) if speed > 1 else ForwardBackwardFlow(step=3.0)
    at_unit_speed = (certificate, system_of(plain)) if certificate.rate > unit.rate else (unit, system)
    forged: list[tuple[Certificate, System]] = [
        (replace(certificate, rate=certificate.rate + 1e-4 * speed), system),
        (certificate, replace(system, W=3 * system.W.mT)),
        (certificate, system.at_speed((0.9 if certificate.rate > 0 else 1.1) * speed)),
        at_unit_speed,
    ]
    if not isinstance(certificate.metric, WeightedL1 | WeightedLinf):  # these may suit the other flow too
        forged.append((certificate, system_of(bound(other)).at_speed(speed)))
    for claim, wrong in forged:
        with pytest.raises(CertificateError):
            check(claim, wrong)


def test_speed_one_half_of_a_negative_rate_is_no_loophole() -> None:
    """A negative rate becomes smaller in size at half speed: the certificate of neither speed serves the other."""
    system = FiringRateSystem(W=gaussian(4, 0, 5.0))
    slow = ParabolaTest().certify(system.at_speed(0.5))
    assert slow.rate < 0 and slow.rate == pytest.approx(ParabolaTest().certify(system).rate / 2, abs=1e-6)
    with pytest.raises(CertificateError):
        check(slow, system)
    assert check(ParabolaTest().certify(system), system.at_speed(0.5)) > 0


def test_bounds_reports_and_convergence_scale_with_the_speed() -> None:
    system = FiringRateSystem(W=gaussian(3, 1))
    plain, scaled = upper_bound(system), upper_bound(system.at_speed(4.0))
    assert scaled.rate == pytest.approx(4 * plain.rate) and torch.allclose(4 * scaled.dwell, plain.dwell)
    summary = report(bound(DouglasRachfordFlow(step=0.7)))
    assert summary.gap >= -1e-9 and all(c.rate <= summary.bound.rate + 1e-9 for c in summary.all)
    W, lam = monotone_weight(4, seed=2, skew=1.0, monotonicity=0.6)
    hopfield = HopfieldSystem(W=W, hint=lam)
    unit, fast = fixed_input_convergence(hopfield), fixed_input_convergence(hopfield.at_speed(3.0))
    assert fast.rate == pytest.approx(3 * unit.rate, rel=1e-8) and fast.overshoot == unit.overshoot
    assert check_convergence(fast, hopfield.at_speed(3.0)) == fast.margin > 0
    faster = replace(fast, rate=1.01 * fast.rate)
    for claim, about in ((fast, hopfield), (fast, hopfield.at_speed(2.9)), (faster, hopfield.at_speed(3.0))):
        with pytest.raises(CertificateError):
            check_convergence(claim, about)


def test_the_inclusion_is_the_limit_of_the_time_scaled_flow() -> None:
    W, lam = monotone_weight(6, seed=1, skew=2.0, spread=0.7, monotonicity=0.6)
    problem, _ = planted(ReLU(), W, lam, batch=1, seed=0)
    rates = [certify(TimeScaledForwardBackward(step=s).bind(problem), DiagonalMetric()).rate for s in (0.2, 0.05, 1e-4)]
    assert rates == sorted(rates) and rates[-1] == pytest.approx(0.6, abs=2e-3)
    firing = certify(FiringRate().bind(problem), ParabolaTest()).rate
    assert certify(TimeScaledForwardBackward(step=1.0).bind(problem), ParabolaTest()).rate == pytest.approx(firing)


def test_speeds_multiply() -> None:
    flow = ScaledFlow(ScaledFlow(bound(Hopfield()), 0.5), 3.0)
    assert system_of(flow).speed == 1.5
    assert certify(flow, ParabolaTest()).rate == pytest.approx(1.5 * certify(bound(Hopfield()), ParabolaTest()).rate)
    with pytest.raises(InputError, match=r"\bspeed\b"):
        FiringRateSystem(W=gaussian(2, 0), speed=0.0)


@pytest.mark.parametrize("seed", range(6))
def test_linear_flows_contract_almost_at_their_spectral_abscissa(seed: int) -> None:
    A = gaussian(3 + seed, seed, 2.0) - 0.5 * torch.eye(3 + seed, dtype=F64)
    abscissa = float(torch.linalg.eigvals(A).real.max())
    system = system_of(LinearFlow(A))
    certificate = certify(LinearFlow(A))
    assert -abscissa - 1e-4 <= certificate.rate <= -abscissa
    assert certificate.rate <= -float(certificate.metric.matrix_measure(A)) + 1e-12
    assert upper_bound(system).rate == pytest.approx(-abscissa) and certificate.assumption == "no activation"
    for claim, about in (
        (replace(certificate, rate=-abscissa + 1e-6), system),
        (certificate, LinearSystem(W=A + 0.1 * torch.eye(len(A), dtype=F64))),
        (certificate, system.at_speed(0.5 if abscissa < 0 else 2.0)),
        (replace(certificate, metric=FullP(torch.eye(len(A), dtype=F64))), LinearSystem(W=A * 4)),
        (certificate, FiringRateSystem(W=A)),
    ):
        with pytest.raises(CertificateError):
            check(claim, about)


def test_linear_flows_of_known_rates() -> None:
    jordan = torch.tensor([[-1.0, 1.0], [0.0, -1.0]], dtype=F64)  # −α(A) = 1 is approached and not attained
    assert 0.999 < certify(LinearFlow(jordan)).rate < 1
    A = torch.tensor([[-3.0, 1.0], [2.0, -4.0]], dtype=F64)  # Metzler: the Perron root −2 is its abscissa
    for norm in (WeightedLinf, WeightedL1):
        certificate = certify(LinearFlow(A), PolyhedralMetric(norm=norm))
        assert certificate.rate == pytest.approx(2, abs=1e-8)
        with pytest.raises(CertificateError):
            check(replace(certificate, rate=2 + 1e-7), LinearSystem(W=A))
    euclidean = WeightedL2(torch.ones(2, dtype=F64))
    exact = -float(torch.linalg.eigvalsh((A + A.mT) / 2)[-1])
    assert certify(LinearFlow(A), GivenMetric(metric=euclidean)).rate == pytest.approx(exact, abs=1e-9)
    # the checker sums exactly what the definition of the measure says
    weights = torch.tensor([2.0, 0.3], dtype=F64)
    for metric in (WeightedL1(weights), WeightedLinf(weights)):
        rate = certify(LinearFlow(A), GivenMetric(metric=metric)).rate
        assert rate == pytest.approx(-float(metric.matrix_measure(A)), abs=1e-11)
    growing = certify(LinearFlow(torch.tensor([[0.5, 9.0], [0.0, -3.0]], dtype=F64)))
    assert growing.rate == pytest.approx(-0.5, abs=1e-3) and not growing.contracting
    assert certify(LinearFlow(torch.zeros(2, 2))).rate == pytest.approx(0, abs=1e-9)


EVERY: dict[str, Callable[[], object]] = {
    "firing rate": lambda: bound(FiringRate()),
    "Hopfield": lambda: bound(Hopfield()),
    "forward–backward": lambda: bound(ForwardBackwardFlow(step=0.1)),
    "Peaceman–Rachford": lambda: bound(PeacemanRachfordFlow(step=0.7)),
    "Douglas–Rachford": lambda: bound(DouglasRachfordFlow(step=0.7)),
    "time-scaled forward–backward": lambda: bound(TimeScaledForwardBackward(step=0.1)),
    "inclusion": lambda: InclusionSystem(W=gaussian(4, 0, 0.5)),
    "linear": lambda: LinearFlow(gaussian(4, 0)),
    "large": lambda: FiringRateSystem(W=gaussian(12, 0)),
}


@pytest.mark.parametrize("name", EVERY)
def test_every_flow_says_which_certificates_apply_to_it(name: str) -> None:
    """Each method named gives a checked certificate; each one not named is refused."""
    flow = EVERY[name]()
    named = applicable(flow)  # type: ignore[arg-type]
    assert named
    for method in named:
        certificate = certify(flow, method)  # type: ignore[arg-type]
        assert check(certificate, system_of(flow)) > 0  # type: ignore[arg-type]
    every = [*METHODS, ExplicitMetric(), LyapunovMetric(), InclusionMetric()]
    for method in every:
        if type(method) not in {type(m) for m in named}:
            with pytest.raises(PreconditionError):
                certify(flow, method)  # type: ignore[arg-type]


def test_a_neural_flow_is_certified_by_its_structure() -> None:
    W, q = gaussian(4, 1), torch.ones(1, 4, dtype=torch.float64)
    same = FiringRate().bind(EquilibriumProblem(linear=Dense(W), q=q, activation=Tanh()))
    written = NeuralFlow(lambda t, s: torch.tanh(s @ W.mT + q + torch.sin(t)) - s)
    assert certify(written).rate == pytest.approx(certify(same).rate, abs=1e-4)
    driven = certify(DrivenFlow(same, lambda t: torch.sin(t) * q))
    assert driven.rate == pytest.approx(certify(same).rate, abs=1e-9)
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Tanh(), torch.nn.Linear(3, 3)).double()
    net[2].load_state_dict({"weight": -2 * torch.eye(3), "bias": torch.zeros(3)})
    net[0].load_state_dict({"weight": torch.eye(3), "bias": torch.ones(3)})
    assert -0.1 < certify(NeuralFlow(net)).rate <= 0  # −2 tanh(s + 1) contracts as slowly as one likes far away
    A = torch.nn.Linear(3, 3).double()
    exact = certify(LinearFlow(A.weight.detach())).rate
    assert certify(NeuralFlow(A)).rate == pytest.approx(exact, abs=1e-6)
    gru = torch.nn.GRUCell(3, 3)
    with pytest.raises(InputError, match="gru_cell"):
        certify(NeuralFlow(lambda t, s: gru(s, s)))


def test_what_is_no_field_is_refused() -> None:
    with pytest.raises(InputError, match=r"\bstate\b"):  # takes states of any size
        certify(NeuralFlow(lambda t, s: -s))
    with pytest.raises(InputError, match=r"\bflow\b"):
        applicable(gaussian(3, 0))  # type: ignore[arg-type]
