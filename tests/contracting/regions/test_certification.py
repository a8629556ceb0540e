"""Rates over regions: right where they are known, never too large, and honest about what was not proved."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from contracting import (
    FullP,
    InputError,
    LinearFlow,
    Metric,
    NeuralFlow,
    PreconditionError,
    WeightedL1,
    WeightedL2,
    WeightedLinf,
    simulate,
)
from contracting.regions import Ball, Box, certify_region, largest_contracting_ball
from contracting.regions import intervals as iv
from contracting.regions.intervals import Interval
from contracting.regions.measures import (
    distance_below,
    half_widths,
    largest_eigenvalue_over,
    measure_over,
    norm_above,
)
from contracting.regions.rest import inscribed_radius

F64 = torch.float64


def vector(*entries: float) -> Tensor:
    return torch.tensor(entries, dtype=F64)


def random_metrics(n: int) -> list[Metric]:
    torch.manual_seed(n)
    A = torch.randn(n, n, dtype=F64)
    weights = 0.3 + 3 * torch.rand(n, dtype=F64)
    P = A @ A.mT + 0.1 * torch.eye(n, dtype=F64)
    return [FullP((P + P.mT) / 2), WeightedL2(weights), WeightedL1(weights), WeightedLinf(weights)]


METRICS = [pytest.param(m, id=f"{type(m).__name__}-{n}") for n in (1, 2, 3, 6) for m in random_metrics(n)]


def reversed_van_der_pol(t: Tensor, s: Tensor) -> Tensor:
    x, y = s.unbind(-1)
    return torch.stack([-y, x - (1 - x**2) * y], -1)


@pytest.mark.parametrize("metric", METRICS)
def test_measures_over_boxes_hold_those_of_their_matrices(metric: Metric) -> None:
    n = metric.size
    torch.manual_seed(1)
    middle, radius = torch.randn(8, n, n, dtype=F64), 0.3 * torch.rand(8, n, n, dtype=F64)
    radius[0] = 0.0
    bound = measure_over(metric, Interval(middle - radius, middle + radius))
    corners = middle + radius * torch.randint(0, 2, (400, 8, n, n)).mul(2).sub(1)
    measures = metric.matrix_measure(corners)
    assert bool((measures <= bound + 1e-13).all())
    # not vacuous: exact for a single matrix, and in ℓ1, ℓ∞ and on the line for every box
    assert float(bound[0]) <= float(metric.matrix_measure(middle[0])) + 1e-10
    if n == 1:
        assert torch.allclose(bound, measures.amax(0), atol=1e-12)
    zero = torch.zeros(1, n, n, dtype=F64)
    unbounded = iv.chosen(torch.eye(n, dtype=torch.bool), iv.exactly(-5.0), iv.everything(zero))
    assert n == 1 or measure_over(metric, unbounded).tolist() == [math.inf]


@pytest.mark.parametrize("n", [2, 3, 7])
def test_largest_eigenvalues_are_bounded_whatever_rounding_does(n: int) -> None:
    torch.manual_seed(n)
    Q = torch.linalg.qr(torch.randn(20, n, n, dtype=F64)).Q
    values = torch.randn(20, n, dtype=F64) * torch.logspace(-8, 8, 20, dtype=F64)[:, None]
    values[:, 0] = values[:, 1]  # clustered
    M = Q @ torch.diag_embed(values) @ Q.mT
    M = (M + M.mT) / 2
    bound = largest_eigenvalue_over(Interval(M, M))
    exact = values.amax(-1)
    size = values.abs().amax(-1)
    assert bool((bound >= exact - 1e-14 * n * size).all()) and bool((bound <= exact + 1e-11 * size).all())


@pytest.mark.parametrize("metric", METRICS)
def test_distances_norms_and_covers_are_on_the_right_side(metric: Metric) -> None:
    n = metric.size
    torch.manual_seed(2)
    centre, lo = torch.randn(n, dtype=F64), 2 * torch.randn(40, n, dtype=F64)
    boxes = Interval(lo, lo + torch.rand(40, n, dtype=F64))
    points = boxes.lo + (boxes.hi - boxes.lo) * torch.rand(2000, 40, n, dtype=F64)
    lengths = metric.norm(points - centre)
    below, above = distance_below(metric, centre, boxes), norm_above(metric, iv.subtract(boxes, iv.exactly(centre)))
    assert bool((below <= lengths * (1 + 1e-14)).all()) and bool((above >= lengths * (1 - 1e-14)).all())
    if n <= 2:
        corners = torch.cartesian_prod(*[torch.linspace(0, 1, 201, dtype=F64)] * n).reshape(-1, 1, n)
        nearest = metric.norm(boxes.lo + (boxes.hi - boxes.lo) * corners - centre).amin(0)
        assert bool((nearest - below <= 0.02 * (1 + nearest)).all())
    widths = half_widths(metric, 2.0)
    directions = torch.randn(4000, n, dtype=F64)
    sphere = 2 * directions / metric.norm(directions)[:, None]
    assert bool((sphere.abs() <= widths).all())
    assert n > 3 or bool((sphere.abs().amax(0) >= 0.8 * widths).all())


def test_a_linear_field_has_its_exact_rate_everywhere() -> None:
    A = torch.tensor([[-1.0, 2.0], [0.0, -1.5]], dtype=F64)
    flow = LinearFlow(A, vector(0.3, 0.1))
    for metric in (FullP(torch.tensor([[1.0, 0.1], [0.1, 4.0]], dtype=F64)), WeightedL1(vector(1.0, 3.0))):
        found = certify_region(flow, Box(vector(-5, -5), vector(5, 5)), metric)
        exact = -float(metric.matrix_measure(A))
        assert found.rate <= exact + 1e-15 and found.rate == pytest.approx(exact, abs=1e-12)
        assert found.complete and found.boxes == 1
        rest = torch.linalg.solve(A, -vector(0.3, 0.1))
        assert found.equilibrium is not None and found.invariant is not None
        assert float(metric.norm(rest - found.equilibrium.centre)) <= found.equilibrium.radius + 1e-15


def test_the_rate_on_an_interval_is_the_smallest_slope() -> None:
    flow = NeuralFlow(lambda t, s: -(s**3) - s + torch.cos(s))
    found = certify_region(flow, Box(vector(-0.5), vector(2.0)), tolerance=1e-4)
    grid = torch.linspace(-0.5, 2.0, 100001, dtype=F64)
    exact = float((3 * grid**2 + 1 + torch.sin(grid)).min())
    assert exact - 2e-4 <= found.rate <= exact <= found.sampled + 1e-9
    assert found.complete and found.invariant is found.region


POCKET = vector(0.4137, -0.2718)


def pocket(depth: float, width: float) -> Callable[[Tensor, Tensor], Tensor]:
    """s' = −s and a push away from one point, which only points within a few widths of it feel."""

    def field(t: Tensor, s: Tensor) -> Tensor:
        apart = s - POCKET
        return -s + depth * apart * torch.exp(-(apart**2).sum(-1, keepdim=True) / (2 * width**2))

    return field


def test_a_planted_pocket_that_samples_miss_is_found() -> None:
    flow = NeuralFlow(pocket(3.0, 1e-4))
    metric, region = FullP(torch.eye(2, dtype=F64)), Box(vector(-1, -1), vector(1, 1))
    points = 2 * torch.rand(100_000, 2, generator=torch.Generator().manual_seed(0), dtype=F64) - 1
    measures = metric.matrix_measure(flow.jacobian(points)).detach()
    assert float(measures.max()) == pytest.approx(-1, abs=1e-6), "samples believe in rate 1"
    found = certify_region(flow, region, metric)
    assert found.rate <= -2.0 + 1e-6 and found.sampled < -1.9  # at its middle the pocket expands at rate 2
    assert not found.contracting and found.invariant is None
    ball = largest_contracting_ball(flow, vector(0.0, 0.0), metric, limit=1.0)
    distance = float(POCKET.norm())
    assert ball.radius < distance and ball.radius > 0.98 * (distance - 5e-4)
    assert ball.at is not None and float((ball.at - POCKET).norm()) < 5e-4


def test_a_budget_that_is_too_small_prevents_the_proof_and_says_so() -> None:
    flow = NeuralFlow(pocket(3.0, 1e-4))
    found = certify_region(flow, Box(vector(-1, -1), vector(1, 1)), FullP(torch.eye(2, dtype=F64)), budget=8)
    assert not found.complete and not found.contracting and found.gap > 0.5
    assert "budget" in str(found)


@pytest.mark.parametrize("seed", range(4))
def test_no_pair_of_trajectories_is_slower_than_the_rate_and_none_leaves(seed: int) -> None:
    torch.manual_seed(seed)
    module = nn.Sequential(nn.Linear(2, 6), nn.Tanh(), nn.Linear(6, 2)).double()

    def field(t: Tensor, s: Tensor) -> Tensor:
        return module(s) - 1.5 * s - 0.2 * torch.sin(s.flip(-1))

    flow = NeuralFlow(field)
    metric = random_metrics(2)[seed]
    found = certify_region(flow, Box(vector(-2, -2), vector(2, 2)), metric)
    points = torch.rand(4000, 2, dtype=F64) * 4 - 2
    assert float(metric.matrix_measure(flow.jacobian(points).detach()).max()) <= -found.rate
    assert found.complete
    if not found.contracting:
        return
    assert found.invariant is not None and found.equilibrium is not None
    times = torch.linspace(0, 4, 41, dtype=F64)
    starts = torch.rand(40, 2, dtype=F64) * 4 - 2
    if isinstance(found.invariant, Ball):
        starts = found.invariant.centre + found.invariant.radius * starts / metric.norm(starts)[:, None]
    states = simulate(flow, starts, times).states.detach()
    gaps = metric.norm(states[:, ::2] - states[:, 1::2])
    assert bool((gaps <= gaps[0] * torch.exp(-found.rate * times)[:, None] * (1 + 1e-5)).all())
    apart = metric.norm(states - found.equilibrium.centre)
    assert bool((apart[-1] <= apart[0] * math.exp(-4 * found.rate) * (1 + 1e-5) + 1e-9).all())


def test_the_equilibrium_is_enclosed_and_its_ball_is_invariant() -> None:
    flow = NeuralFlow(lambda t, s: torch.cos(s) - s)
    region = Ball(vector(0.7), 0.4, WeightedL2(vector(1.0)))
    found = certify_region(flow, region)
    dottie = 0.73908513321516064166
    assert found.equilibrium is not None and found.invariant is found.region
    assert abs(float(found.equilibrium.centre) - dottie) <= found.equilibrium.radius * (1 + 1e-12)
    assert "every trajectory from the region converges" in found.claim
    # a ball around a point that does not rest, whose own proof would need the equilibrium to be nearer
    inner = certify_region(flow, Ball(vector(0.9), 0.2, WeightedL2(vector(1.0))), equilibrium=vector(0.739))
    assert isinstance(inner.invariant, Ball) and inner.invariant.radius == pytest.approx(0.2 - (0.9 - dottie), abs=1e-9)


def test_the_error_of_a_state_inside_is_bounded_and_of_none_outside() -> None:
    flow = NeuralFlow(reversed_van_der_pol)
    found = largest_contracting_ball(flow, vector(0.0, 0.0)).certificate
    torch.manual_seed(0)
    states = torch.randn(500, 2, dtype=F64)
    inside = found.contains(states)
    assert bool(inside.any()) and not bool(inside.all())
    assert torch.equal(inside, found.metric.norm(states) <= found.region.radius)
    bounds = found.metric.norm(flow(0.0, states)) / found.rate
    assert bool((found.metric.norm(states) <= bounds)[inside].all())
    nowhere = certify_region(NeuralFlow(lambda t, s: -s), Box(vector(1.0, 1.0), vector(2.0, 2.0)))
    assert not bool(nowhere.contains(vector(1.5, 1.5)[None]).any())
    assert bool(nowhere.region.contains(vector(1.5, 1.5))) and not bool(nowhere.region.contains(vector(0.0, 0.0)))


def test_a_region_without_an_equilibrium_promises_less() -> None:
    flow = NeuralFlow(lambda t, s: -s)
    away = Box(vector(1.0, 1.0), vector(2.0, 2.0))
    found = certify_region(flow, away)
    assert found.rate == pytest.approx(1.0) and found.invariant is None and found.equilibrium is None
    assert found.claim.startswith("as long as both trajectories stay inside")
    with pytest.raises(PreconditionError, match="equilibrium"):
        certify_region(flow, away, equilibrium=vector(1.5, 1.5))
    with pytest.raises(PreconditionError, match="equilibrium"):
        largest_contracting_ball(flow, vector(1.5, 1.5))


def test_a_pole_inside_is_never_proved() -> None:
    # of s' = 1/s the slope is −1/s² ≤ 0 wherever it has one, and yet trajectories do not meet across the pole
    found = certify_region(NeuralFlow(lambda t, s: 1 / s), Box(vector(-1.0), vector(1.0)), budget=200)
    assert not found.contracting
    jumps = NeuralFlow(lambda t, s: torch.where(s > 0.1, 1 - s, -s))
    assert not certify_region(jumps, Box(vector(-1.0), vector(1.0)), budget=200).contracting


def test_time_is_one_more_interval() -> None:
    flow = NeuralFlow(lambda t, s: -(1.2 + torch.sin(t)) * s)
    region = Box(vector(-1.0), vector(1.0))
    found = certify_region(flow, region, times=(0.0, 6.3), tolerance=0.01)
    assert 0.19 <= found.rate <= 0.2 and found.times == (0.0, 6.3)
    assert found.invariant is found.region and found.equilibrium is None
    short = certify_region(flow, region, times=(0.0, 1.0))
    assert short.rate == pytest.approx(1.2, rel=0.02)
    with pytest.raises(InputError, match="times"):
        certify_region(flow, region)
    with pytest.raises(InputError, match="times"):
        certify_region(flow, region, times=(1.0, 0.0))


def test_the_largest_ball_is_between_what_is_proved_and_what_is_seen() -> None:
    flow = NeuralFlow(reversed_van_der_pol)
    found = largest_contracting_ball(flow, vector(0.01, 0.01))
    assert 0.95 < found.share <= 1 and found.at is not None
    metric = found.ball.metric
    assert float(metric.matrix_measure(flow.jacobian(found.at[None]).detach())) >= 0
    assert float(metric.norm(found.at - found.ball.centre)) == pytest.approx(found.broken)
    torch.manual_seed(0)
    points = torch.randn(20_000, 2, dtype=F64)
    points = found.radius * torch.rand(20_000, 1, dtype=F64).sqrt() * points / metric.norm(points)[:, None]
    assert float(metric.matrix_measure(flow.jacobian(points).detach()).max()) <= -found.certificate.rate
    faster = largest_contracting_ball(flow, vector(0.0, 0.0), metric, rate=0.2)
    assert faster.radius < found.radius and faster.certificate.rate >= 0.2
    everywhere = largest_contracting_ball(NeuralFlow(lambda t, s: -s - torch.tanh(s)), vector(0.0, 0.0), limit=10.0)
    assert everywhere.at is None and everywhere.radius == pytest.approx(everywhere.broken)


def test_an_equilibrium_that_does_not_attract_has_no_ball() -> None:
    unstable = NeuralFlow(lambda t, s: -reversed_van_der_pol(t, s))
    with pytest.raises(PreconditionError, match="stable"):
        largest_contracting_ball(unstable, vector(0.0, 0.0))
    with pytest.raises(PreconditionError, match="rate"):
        largest_contracting_ball(
            NeuralFlow(reversed_van_der_pol), vector(0.0, 0.0), FullP(torch.eye(2, dtype=F64)), rate=0.1
        )


def test_a_ball_inside_another_region_fits() -> None:
    torch.manual_seed(3)
    metrics = random_metrics(3)[:2]
    centre, inside = torch.zeros(3, dtype=F64), vector(0.05, -0.02, 0.03)
    for outer in metrics:
        for metric in metrics:
            region = Ball(centre, 1.0, outer)
            radius = inscribed_radius(region, metric, inside)
            directions = torch.randn(20000, 3, dtype=F64)
            sphere = inside + radius * directions / metric.norm(directions)[:, None]
            assert float(outer.norm(sphere).max()) <= 1 + 1e-12
            assert radius > 0 and float(outer.norm(sphere).max()) > 0.85
    box = Box(-torch.ones(3, dtype=F64), torch.ones(3, dtype=F64))
    for metric in random_metrics(3):
        radius = inscribed_radius(box, metric, inside)
        directions = torch.randn(20000, 3, dtype=F64)
        sphere = inside + radius * directions / metric.norm(directions)[:, None]
        assert 0.9 < float(sphere.abs().max()) <= 1


def test_bad_input_is_refused_by_name() -> None:
    flow = NeuralFlow(lambda t, s: -s)
    box, cube = Box(vector(-1, -1), vector(1, 1)), torch.ones(3, dtype=F64)
    for name, call in {
        "lower": lambda: Box(vector(1.0), vector(0.0)),
        "upper": lambda: Box(vector(1.0), vector(2.0, 3.0)),
        "centre": lambda: Ball(vector(math.nan), 1.0, FullP(torch.eye(1, dtype=F64))),
        "radius": lambda: Ball(vector(0.0), -1.0, FullP(torch.eye(1, dtype=F64))),
        "metric": lambda: Ball(vector(0.0), 1.0, FullP(torch.eye(2, dtype=F64))),
        "region": lambda: certify_region(flow, (0.0, 1.0)),
        "flow": lambda: certify_region(lambda t, s: -s, box),
        "budget": lambda: certify_region(flow, box, budget=0),
        "tolerance": lambda: certify_region(flow, box, tolerance=-1.0),
        "equilibrium": lambda: certify_region(flow, box, equilibrium=vector(0.0)),
        "lgamma": lambda: certify_region(NeuralFlow(lambda t, s: -torch.lgamma(s)), box),
        "rows": lambda: certify_region(NeuralFlow(lambda t, s: s - s.mean(0)), box),
        "region has 3": lambda: certify_region(LinearFlow(-torch.eye(2, dtype=F64)), Box(-cube, cube)),
        "shape": lambda: certify_region(NeuralFlow(lambda t, s: s[:, :1]), box),
    }.items():
        with pytest.raises(InputError, match=name):
            call()


def test_networks_in_single_precision_are_proved_with_their_weights() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 2))

    class Field(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = module

        def forward(self, t: Tensor, s: Tensor) -> Tensor:
            return self.inner(s) - 2 * s

    found = certify_region(NeuralFlow(Field()), Box(vector(-1, -1), vector(1, 1)))
    same = certify_region(NeuralFlow(Field().double()), Box(vector(-1, -1), vector(1, 1)), found.metric)
    assert found.rate == pytest.approx(same.rate, rel=1e-4) and found.contracting
