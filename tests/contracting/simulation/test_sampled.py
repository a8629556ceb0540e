"""Sampled rates: exact where the Jacobian is constant, never called certified, and beaten by the worst point."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from contracting.activations.catalogue import ReLU, Tanh
from contracting.errors import InputError
from contracting.flows.base import BoundFlow
from contracting.flows.driven import DrivenFlow
from contracting.flows.fields import LinearFlow, NeuralFlow
from contracting.flows.network import FiringRate
from contracting.flows.speed import ScaledFlow
from contracting.metrics import FullP, Metric, WeightedL1, WeightedL2, WeightedLinf
from contracting.simulation.sampled import (
    fit_metric,
    fit_metric_by_inequalities,
    measure,
    sampled_rate,
    sampled_rate_along,
    worst_point,
)
from contracting.simulation.trajectories import distance, simulate, simulate_pairs
from tests.problems import monotone_weight, planted

F64 = torch.float64
# stable, but far from contracting in the Euclidean norm: μ₂ = −1 + 5
SHEAR = torch.tensor([[-1.0, 10.0], [0.0, -2.0]], dtype=F64)


def euclidean(n: int) -> WeightedL2:
    return WeightedL2(torch.ones(n, dtype=F64))


def well(t: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
    """∂f/∂z = −2 + e^{−(z − 1)²}, largest at z = 1, where it is −1."""
    return -2 * z + 0.5 * math.sqrt(math.pi) * torch.erf(z - 1)


@pytest.mark.parametrize(
    "metric", [euclidean(2), WeightedL1(torch.tensor([1.0, 3.0])), FullP(torch.tensor([[2.0, 0.5], [0.5, 1.0]]))]
)
def test_the_rate_of_a_linear_flow_is_exact(metric: Metric) -> None:
    points = torch.randn(5, 2, dtype=F64)
    result = sampled_rate(LinearFlow(SHEAR), points, metric)
    assert result.rate == pytest.approx(-float(metric.to(points).matrix_measure(SHEAR)))
    assert result.measures.shape == (5,)


def test_a_sampled_rate_is_never_called_certified() -> None:
    result = sampled_rate(LinearFlow(SHEAR), torch.zeros(1, 2, dtype=F64), euclidean(2))
    assert result.certified is False and "not certified" in str(result) and "sampled" in str(result)
    with pytest.raises(AttributeError):
        result.certified = True  # type: ignore[misc]


def test_ascent_finds_the_worst_point_that_samples_miss() -> None:
    flow, start = NeuralFlow(well), torch.tensor([[-0.5], [2.0]], dtype=F64)
    seen = sampled_rate(flow, start, euclidean(1))
    found = worst_point(flow, start, euclidean(1), radius=2.0, steps=40)
    assert seen.rate > 1.5 and found.rate == pytest.approx(1.0, abs=1e-3)
    assert float(found.worst_point) == pytest.approx(1.0, abs=0.05)
    # the box is respected
    near = worst_point(flow, start, euclidean(1), radius=0.5, steps=40)
    assert near.rate > found.rate + 0.1 and float(near.worst_point) == pytest.approx(1.5, abs=1e-6)


def test_ascent_through_an_mlp_never_ends_below_its_start() -> None:
    torch.manual_seed(1)
    net = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3)).double()
    flow = NeuralFlow(lambda t, z: net(z) - 2 * z)
    start = 2 * torch.randn(6, 3, dtype=F64)
    before = measure(flow, start, euclidean(3)).detach()
    result = worst_point(flow, start, euclidean(3), radius=3.0, steps=30)
    assert torch.all(result.measures >= before) and float(result.measures.max() - before.max()) > 0.01
    again = measure(flow, result.worst_point[None], euclidean(3))
    assert float(again.detach()) == pytest.approx(-result.rate, abs=1e-12)


def test_ascent_on_a_piecewise_linear_flow_reports_its_starting_points() -> None:
    W, lam = monotone_weight(3, seed=1)
    problem, _ = planted(ReLU(), W, lam, batch=1, seed=2)
    flow, start = FiringRate().bind(problem), torch.randn(5, 3, dtype=F64)
    result = worst_point(flow, start, euclidean(3), radius=1.0, steps=5)
    assert result.rate == pytest.approx(sampled_rate(flow, start, euclidean(3)).rate)


def test_along_a_trajectory_the_time_counts() -> None:
    flow = NeuralFlow(lambda t, z: -(2 + torch.cos(t)) * z)
    trajectory = simulate(flow, torch.ones(2, 1, dtype=F64), torch.linspace(0, 4, 41, dtype=F64))
    result = sampled_rate_along(flow, trajectory, euclidean(1))
    assert len(result.measures) == 82
    assert result.worst_time == pytest.approx(3.1, abs=1e-6)
    assert result.rate == pytest.approx(2 + math.cos(3.1), abs=1e-9)


def test_samples_never_show_less_than_the_proved_rate() -> None:
    W, lam = monotone_weight(4, seed=3, skew=0.3)
    problem, _ = planted(Tanh(), W, lam, batch=1, seed=4)
    flow = FiringRate().bind(problem)
    assert problem.metric is not None and flow.contraction_rate is not None
    result = worst_point(flow, torch.randn(8, 4, dtype=F64), problem.metric, radius=5.0, steps=20)
    assert result.rate >= flow.contraction_rate > 0


@pytest.mark.parametrize(
    ("family", "best"),
    # for a shear, scaling the second axis up brings every measure as near to the spectral abscissa −1 as one likes
    [(FullP, 1.0), (WeightedL2, 1.0), (WeightedL1, 1.0), (WeightedLinf, 1.0)],
)
def test_a_trained_metric_shows_the_contraction(family: type[Metric], best: float) -> None:
    flow, points = LinearFlow(SHEAR), torch.zeros(1, 2, dtype=F64)
    assert sampled_rate(flow, points, euclidean(2)).rate < -3
    result = fit_metric(flow, points, family=family, steps=200, learning_rate=0.1)
    assert isinstance(result.metric, family) and best - 0.1 < result.rate <= best + 1e-9
    assert sampled_rate(flow, points, result.metric).rate == pytest.approx(result.rate)


@pytest.mark.parametrize("family", [FullP, WeightedL2, WeightedL1, WeightedLinf])
@pytest.mark.parametrize("fit", [fit_metric, fit_metric_by_inequalities], ids=["gradients", "inequalities"])
def test_a_metric_found_for_a_float32_flow_measures_float32(family: type[Metric], fit: Callable[..., Any]) -> None:
    """Also one that float32 could not hold, and a float32 metric beside float64 states."""
    if fit is fit_metric_by_inequalities and family not in (FullP, WeightedL2):
        return
    A = torch.tensor([[-1.0, 1e4], [0.0, -1.5]])
    found = fit(LinearFlow(A), torch.zeros(1, 2), family=family, **({"steps": 50} if fit is fit_metric else {}))
    metric, x = found.metric, torch.tensor([[1.0, -2.0]])
    exact = metric.norm(x.double())
    assert torch.allclose(metric.norm(x), exact) and metric.norm(x).dtype == F64
    assert float(metric.matrix_measure(A)) == pytest.approx(-found.rate, rel=1e-6)
    assert torch.allclose(metric.operator_norm(A), metric.operator_norm(A.double()))
    assert sampled_rate(LinearFlow(A), x, metric).rate == pytest.approx(found.rate, rel=1e-6)
    pair = simulate_pairs(LinearFlow(A), 0 * x, x, torch.tensor([0.0, 0.1]))
    assert float(distance(pair, metric)[0]) == pytest.approx(float(exact))
    assert torch.allclose(euclidean(2).to(x).norm(x.double()), torch.tensor([5**0.5], dtype=F64))
    narrow = FullP(torch.tensor([[1.0, 1 - 1e-9], [1 - 1e-9, 1.0]], dtype=F64))  # singular once it is rounded
    assert float(narrow.norm(torch.ones(2))) == pytest.approx(2.0)
    assert sampled_rate(LinearFlow(-torch.eye(2)), x, narrow).rate == pytest.approx(1.0)


def test_a_full_metric_turns_where_a_diagonal_one_cannot() -> None:
    """A = T diag(−1, −3) T⁻¹: the best full-P rate is 1, and no diagonal metric gets there."""
    T = torch.tensor([[1.0, 1.0], [1.0, 1.2]], dtype=F64)
    A = T @ torch.diag(torch.tensor([-1.0, -3.0], dtype=F64)) @ torch.linalg.inv(T)
    points = torch.zeros(1, 2, dtype=F64)
    full = fit_metric(LinearFlow(A), points, steps=300)
    diagonal = fit_metric(LinearFlow(A), points, family=WeightedL2, steps=100)
    assert full.rate > 0.95 and diagonal.rate < 0.5


def test_a_metric_trained_for_a_neural_flow_holds_on_other_points() -> None:
    torch.manual_seed(2)
    net = torch.nn.Sequential(torch.nn.Linear(2, 6), torch.nn.Tanh(), torch.nn.Linear(6, 2)).double()
    flow = NeuralFlow(lambda t, z: z @ SHEAR.mT + 0.2 * net(z))
    trained = fit_metric(flow, torch.randn(60, 2, dtype=F64), steps=150)
    other = torch.randn(60, 2, dtype=F64)
    assert sampled_rate(flow, other, euclidean(2)).rate < 0 < sampled_rate(flow, other, trained.metric).rate


@pytest.mark.parametrize("seed", range(4))
def test_matrix_inequalities_reach_the_spectral_abscissa_of_a_linear_flow(seed: int) -> None:
    torch.manual_seed(seed)
    A = 2 * torch.randn(4, 4, dtype=F64) - torch.eye(4, dtype=F64)
    best = -float(torch.linalg.eigvals(A).real.max())
    result = fit_metric_by_inequalities(LinearFlow(A), torch.zeros(1, 4, dtype=F64))
    assert best - 2e-3 < result.rate <= best + 1e-9
    assert result.rate == pytest.approx(-float(result.metric.matrix_measure(A)), abs=1e-12)
    assert isinstance(result.metric, FullP) and result.certified is False and "not certified" in str(result)


def test_matrix_inequalities_are_no_worse_than_the_gradient_fit() -> None:
    """On a neural flow; the same for diagonal metrics, and judged again at points that were not fitted."""
    torch.manual_seed(5)
    net = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3)).double()
    shear = torch.tensor([[-1.5, 4.0, 0.0], [0.0, -2.0, 3.0], [0.0, 0.0, -1.0]], dtype=F64)
    flow, points = NeuralFlow(lambda t, z: z @ shear.mT + 0.5 * net(z)), 2 * torch.randn(200, 3, dtype=F64)
    for family in (FullP, WeightedL2):
        program = fit_metric_by_inequalities(flow, points, family=family)  # type: ignore[arg-type]
        gradient = fit_metric(flow, points, family=family, steps=300)
        assert isinstance(program.metric, family) and len(program.measures) == 200
        assert program.rate >= gradient.rate - 1e-3
        assert sampled_rate(flow, points, program.metric).rate == pytest.approx(program.rate, abs=1e-9)
    other = sampled_rate(flow, 2 * torch.randn(100, 3, dtype=F64), program.metric)
    assert other.rate > sampled_rate(flow, points, euclidean(3)).rate


def test_matrix_inequalities_refuse_what_they_cannot_do() -> None:
    flow, points = LinearFlow(SHEAR), torch.zeros(1, 2, dtype=F64)
    with pytest.raises(InputError, match=r"\bfamily\b"):
        fit_metric_by_inequalities(flow, points, family=WeightedL1)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"\bflow\b"):
        fit_metric_by_inequalities(lambda t, z: z, points)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"\bshape\b"):
        fit_metric_by_inequalities(flow, points[0])
    unstable = LinearFlow(torch.tensor([[-1.0, 0.0], [0.0, 0.2]], dtype=F64))
    assert fit_metric_by_inequalities(unstable, points).rate <= -0.2 + 1e-9


def test_an_unstable_flow_contracts_in_no_metric() -> None:
    flow = LinearFlow(torch.tensor([[-1.0, 0.0], [0.0, 0.2]], dtype=F64))
    assert fit_metric(flow, torch.zeros(1, 2, dtype=F64), steps=50).rate <= -0.2 + 1e-9


def test_what_is_not_finite_is_no_sample() -> None:
    """A NaN is not a rate: neither where it is looked at first, nor where the ascent gets to."""
    flow = NeuralFlow(lambda t, z: -z.clamp(max=1.0).sqrt() - z)  # no derivative left of 0
    good, bad = torch.tensor([[0.5]], dtype=F64), torch.tensor([[-0.5]], dtype=F64)
    assert sampled_rate(flow, good, euclidean(1)).rate == pytest.approx(1 + 0.5 / 0.5**0.5)
    for metric in (euclidean(1), WeightedLinf(torch.ones(1, dtype=F64))):
        with pytest.raises(InputError, match=r"\bJacobian\b"):
            sampled_rate(flow, bad, metric)
        with pytest.raises(InputError, match=r"\bJacobian\b"):
            worst_point(flow, bad, metric, radius=0.1, steps=3)
        with pytest.raises(InputError, match=r"\bpoints\b"):
            worst_point(flow, good * math.nan, metric, radius=0.1, steps=3)
    cliff = NeuralFlow(lambda t, z: -z + z**2 + 0 * (0.6 - z).sqrt())
    assert worst_point(cliff, good, euclidean(1), radius=0.05, steps=20).rate == pytest.approx(1 - 2 * 0.55)
    with pytest.raises(InputError, match=r"\bJacobian\b"):
        worst_point(cliff, good, euclidean(1), radius=1.0, steps=20)


@pytest.mark.parametrize("learning_rate", [0.0, -0.1, math.inf, math.nan, "1"])
def test_learning_rates_out_of_range_are_refused(learning_rate: float) -> None:
    flow, points = LinearFlow(SHEAR), torch.zeros(1, 2, dtype=F64)
    with pytest.raises(InputError, match=r"\blearning_rate\b"):
        worst_point(flow, points, euclidean(2), radius=1.0, steps=1, learning_rate=learning_rate)
    with pytest.raises(InputError, match=r"\blearning_rate\b"):
        fit_metric(flow, points, steps=1, learning_rate=learning_rate)


def test_no_points_show_nothing() -> None:
    flow, points = LinearFlow(SHEAR), torch.zeros(0, 2, dtype=F64)
    for call in (
        lambda: sampled_rate(flow, points, euclidean(2)),
        lambda: worst_point(flow, points, euclidean(2), radius=1.0),
        lambda: fit_metric(flow, points),
        lambda: fit_metric_by_inequalities(flow, points),
    ):
        with pytest.raises(InputError, match=r"\bpoints\b"):
            call()


@pytest.mark.parametrize("scaled", [False, True])
def test_a_problem_of_many_rows_takes_as_many_points(scaled: bool) -> None:
    """Row by row; one row of input serves any number of points, and other numbers are refused by every function."""
    W, lam = monotone_weight(3, seed=1)
    problem, _ = planted(Tanh(), W, lam, batch=4, seed=2)
    points = torch.randn(4, 3, dtype=F64)

    def flow(rows: slice) -> BoundFlow:
        bound = FiringRate().bind(problem.rows(rows))
        return ScaledFlow(bound, 2.0) if scaled else bound

    together = measure(flow(slice(None)), points, euclidean(3))
    alone = [measure(flow(slice(i, i + 1)), points[i : i + 1], euclidean(3)) for i in range(4)]
    assert together == pytest.approx(torch.cat(alone))
    assert sampled_rate(flow(slice(1)), points, euclidean(3)).measures.shape == (4,)
    for count in (1, 2, 3):
        few = points[:count]
        for call in (
            lambda few=few: measure(flow(slice(None)), few, euclidean(3)),
            lambda few=few: sampled_rate(flow(slice(None)), few, euclidean(3)),
            lambda few=few: worst_point(flow(slice(None)), few, euclidean(3), radius=1.0, steps=1),
            lambda few=few: fit_metric(flow(slice(None)), few, steps=1),
            lambda few=few: fit_metric_by_inequalities(flow(slice(None)), few),
        ):
            with pytest.raises(InputError, match=r"\bpoints\b"):
                call()


def test_the_rows_of_a_moving_input_count_as_well() -> None:
    W, lam = monotone_weight(3, seed=1)
    problem, _ = planted(Tanh(), W, lam, batch=1, seed=2)
    many = DrivenFlow(FiringRate().bind(problem), lambda t: problem.q.expand(4, -1) * torch.cos(t))
    assert sampled_rate(many, torch.zeros(4, 3, dtype=F64), euclidean(3)).measures.shape == (4,)
    with pytest.raises(InputError, match=r"\bsignal\b"):
        sampled_rate(many, torch.zeros(2, 3, dtype=F64), euclidean(3))


def test_points_of_another_size_or_kind_than_the_flow_are_refused() -> None:
    with pytest.raises(InputError, match=r"\bpoints\b"):
        fit_metric(LinearFlow(SHEAR), torch.zeros(1, 3, dtype=F64), steps=1)
    W, lam = monotone_weight(3, seed=1)
    flow = FiringRate().bind(planted(Tanh(), W, lam, batch=1, seed=2)[0])
    with pytest.raises(InputError, match=r"\bpoints\b"):
        fit_metric(flow, torch.zeros(1, 2, dtype=F64), steps=1)
    with pytest.raises(InputError, match=r"\bpoints\b"):
        sampled_rate(flow, torch.zeros(1, 3), euclidean(3))


def test_mistakes_are_named() -> None:
    flow, points = LinearFlow(SHEAR), torch.zeros(1, 2, dtype=F64)
    with pytest.raises(InputError, match=r"\bfamily\b"):
        fit_metric(flow, points, family=Metric)
    with pytest.raises(InputError, match=r"\bpoints\b"):
        sampled_rate(flow, points, euclidean(3))
    with pytest.raises(InputError, match=r"\bflow\b"):
        sampled_rate(lambda t, z: z, points, euclidean(2))  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"\bradius\b"):
        worst_point(flow, points, euclidean(2), radius=0.0)


def test_inference_mode_changes_nothing() -> None:
    points = torch.randn(5, 1, dtype=F64)

    def results() -> list[torch.Tensor]:
        flow, metric = NeuralFlow(well), euclidean(1)
        climbed = worst_point(flow, points.clone(), metric, radius=2.0, steps=20)
        fitted = fit_metric(NeuralFlow(lambda t, s: s @ SHEAR.mT), points.expand(-1, 2).clone(), steps=20)
        matrices = flow.jacobian(points.clone()), flow.jvp(points.clone(), points.clone())
        return [*matrices, sampled_rate(flow, points, metric).measures, climbed.measures, fitted.measures]

    expected = results()
    with torch.inference_mode():
        found = results()
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert torch.allclose(expected[0][:, 0], -2 + torch.exp(-((points - 1) ** 2)))


@pytest.mark.parametrize(
    "cut",
    [
        lambda t, s: -s.detach(),
        torch.no_grad()(lambda t, s: -s),
        torch.inference_mode()(lambda t, s: -s),
        lambda t, s: torch.from_numpy(-s.detach().numpy()),
        lambda t, s: SHEAR.clone().requires_grad_()[0] * s.detach(),
    ],
    ids=["detach", "no_grad", "inference_mode", "numpy", "parameters only"],
)
def test_a_field_that_hides_from_autograd_is_refused(cut) -> None:  # type: ignore[no-untyped-def]
    points = torch.randn(5, 2, dtype=F64)
    for act in (NeuralFlow(cut).jacobian, lambda s: NeuralFlow(cut).jvp(s, s)):
        with pytest.raises(InputError, match=r"f\(t, s\)"):
            act(points)


def test_a_constant_field_has_no_jacobian_to_hide() -> None:
    points = torch.randn(5, 2, dtype=F64)
    flow = NeuralFlow(lambda t, s: torch.ones_like(s))
    assert not flow.jacobian(points).any()
    assert not flow.jvp(points, points).any()
