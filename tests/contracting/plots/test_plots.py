"""Figures of contraction: what is drawn is what was given, lines have the slopes they claim, and wrong claims show."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from contracting import plots
from contracting.activations.catalogue import ReLU, Tanh
from contracting.certificates import FiringRateSystem, ParabolaTest, abscissa_bound, certify, fixed_input_convergence
from contracting.certificates.multipliers import scaled
from contracting.certificates.numerical_range import boundary, support
from contracting.certificates.sweeps import SkewnessSweep, sweep_skewness, sweep_steps
from contracting.errors import InputError, PreconditionError
from contracting.flows.fields import LinearFlow, NeuralFlow
from contracting.flows.network import FiringRate
from contracting.loop.records import Stop
from contracting.maps.dense import Dense
from contracting.metrics import FullP, WeightedL1, WeightedL2, WeightedLinf
from contracting.plots import (
    FULL_WIDTH,
    HALF_WIDTH,
    animate_phase_portrait,
    new_axes,
    plot_distance,
    plot_energy_contours,
    plot_energy_descent,
    plot_numerical_range,
    plot_phase_portrait,
    plot_rate_against_step,
    plot_rates_against_skewness,
    plot_spectra,
    plot_tracking,
)
from contracting.plots.style import BLUE, PURPLE, label_ends
from contracting.problem import EquilibriumProblem
from contracting.simulation.balls import carry_ball, unit_sphere
from contracting.simulation.energy import Energy
from contracting.simulation.evidence import Claim, standing
from contracting.simulation.sampled import sampled_rate
from contracting.simulation.time_steps import AdaptiveStep
from contracting.simulation.tracking import track
from contracting.simulation.trajectories import distance, simulate_pairs
from contracting.solvers.splitting import ForwardBackward
from tests.figures import assert_readable, line
from tests.problems import monotone_weight

F64 = torch.float64
TIMES = torch.linspace(0, 4, 41, dtype=F64)
WIDTHS = pytest.mark.parametrize("width", [FULL_WIDTH, HALF_WIDTH])
LIMITS = {"x": (-1.2, 1.2), "y": (-1.2, 1.2)}


SPIRAL = torch.tensor([[-1.0, 1.0], [-1.5, -1.0]])


class FieldOfTime(torch.nn.Linear):
    def __init__(self):
        super().__init__(2, 2, bias=False)
        with torch.no_grad():
            self.weight.copy_(SPIRAL)

    def forward(self, t, z):
        return super().forward(z)


def claim(rate, metric=None):
    return Claim(rate=rate, metric=metric or WeightedL2.identity(2, dtype=F64))


def slope(drawn) -> float:
    t, d = drawn.get_data()
    return math.log(d[-1] / d[0]) / (t[-1] - t[0])


@pytest.fixture(scope="module")
def spiral():
    problem = EquilibriumProblem(
        linear=Dense(torch.tensor([[-0.3, 1.2], [-1.5, 0.1]], dtype=F64)),
        q=torch.tensor([[0.3, 0.5]], dtype=F64),
        activation=Tanh(),
        metric=WeightedL2(torch.ones(2, dtype=F64)),
    )
    flow = FiringRate().bind(problem)
    return flow, certify(flow, ParabolaTest(optimise=5))


@pytest.fixture(scope="module")
def ball(spiral):
    flow, certificate = spiral
    centre = torch.tensor([-0.6, -0.6], dtype=F64)
    return carry_ball(flow, centre, 0.4, TIMES, evidence=certificate, points=60)


# ---------------------------------------------------------------------------------------------------- trajectories


@pytest.fixture(scope="module")
def pairs(spiral):
    flow, certificate = spiral
    generator = torch.Generator().manual_seed(0)
    first, second = 2 * torch.rand(2, 5, 2, dtype=F64, generator=generator) - 1
    return distance(simulate_pairs(flow, first, second, TIMES), certificate.metric)


def test_certified_line_has_the_certified_slope(spiral, pairs):
    rate = spiral[1].rate
    axes = plot_distance(TIMES, pairs, evidence=spiral[1], bound=0.9)
    assert slope(line(axes, "certified")) == pytest.approx(-rate)
    assert slope(line(axes, "bound")) == pytest.approx(-0.9)
    seen = [entry for entry in axes.lines if len(entry.get_xdata()) == len(TIMES)]
    assert np.allclose([entry.get_ydata() for entry in seen], (pairs / pairs[0]).mT)
    assert axes.get_title(loc="left").startswith("Every pair keeps")


def test_a_rate_that_is_too_large_is_seen(pairs):
    slowest = float((pairs[0] / pairs).log().div(TIMES[:, None].clamp_min(1e-9))[1:].amin())
    for share, said in ((0.99, "Every pair keeps"), (1.01, "Some pairs are slow")):
        axes = plot_distance(TIMES, pairs, evidence=claim(share * slowest))
        assert axes.get_title(loc="left").startswith(said)


def test_two_flows_share_axes_and_both_stay_in_view(pairs):
    axes = plot_distance(TIMES, pairs, evidence=claim(0.3), flow="first")
    assert plot_distance(TIMES, torch.exp(2 * TIMES), axes, evidence=claim(-2.5), flow="second") is axes
    low, high = axes.get_ylim()
    assert low < float((pairs / pairs[0]).min()) and high > math.exp(2.5 * float(TIMES[-1]))
    assert {text.get_text() for text in axes.get_legend().get_texts()} >= {"a pair (second)", "5 pairs (first)"}


def test_wrong_distances_are_named():
    with pytest.raises(InputError, match=r"\bshape\b"):
        plot_distance(TIMES, torch.ones(3, dtype=F64), evidence=claim(1.0))
    with pytest.raises(InputError, match=r"\bdistances\b"):
        plot_distance(TIMES, torch.zeros(41, dtype=F64), evidence=claim(1.0))


@pytest.fixture(scope="module")
def tracked(spiral):
    flow, certificate = spiral
    signal = lambda t: torch.cat([torch.sin(t).reshape(-1, 1), torch.cos(t).reshape(-1, 1)], -1)  # noqa: E731
    start = torch.tensor([[1.0, 1.0], [-1.0, 0.5]], dtype=F64)
    return track(
        flow, signal, TIMES, start=start, evidence=certificate, integrator=AdaptiveStep(rtol=1e-5),
    )  # fmt: skip


def test_tracking_error_and_bound_are_drawn(spiral, tracked):
    axes = plot_tracking(tracked)
    assert np.allclose(line(axes, "measured").get_ydata(), tracked.error[:, 0])
    assert np.allclose(line(axes, "bound, speed sampled").get_ydata(), tracked.bound[:, 0])
    assert "of its bound" in axes.get_title(loc="left")


# ---------------------------------------------------------------------------------------------------- evidence


def words(axes) -> str:
    """All that is written on a figure: its title and its legend."""
    return " ".join([axes.get_title(loc="left"), *(text.get_text() for text in axes.get_legend().get_texts())])


@pytest.mark.parametrize("kind", ["certified", "sampled", "claimed"])
def test_the_words_on_a_figure_are_those_of_its_evidence(spiral, pairs, kind):
    """A sampled rate is drawn as sampled, in every figure, and never called certified; a claim is a claim."""
    flow, certificate = spiral
    evidence = {
        "certified": certificate,
        "sampled": sampled_rate(flow, torch.zeros(1, 2, dtype=F64), certificate.metric),
        "claimed": claim(certificate.rate, certificate.metric),
    }[kind]
    assert standing(evidence) == kind
    loose = AdaptiveStep(rtol=1e-4)
    carried = carry_ball(flow, torch.zeros(2, dtype=F64), 0.4, TIMES, evidence=evidence, points=10, integrator=loose)
    spectra = {"some": torch.linalg.eigvals(flow.jacobian(torch.zeros(1, 2, dtype=F64)))}
    film = animate_phase_portrait(flow, carried, **LIMITS, frames=2)
    film._draw_was_started = True
    followed = track(flow, lambda t: flow.problem.q, TIMES, evidence=evidence, speed=0.1, integrator=loose)
    figures = {
        "phase": plot_phase_portrait(flow, **LIMITS, ball=carried),
        "film": film._fig.axes[0],
        "distance": plot_distance(TIMES, pairs, evidence=evidence),
        "spectra": plot_spectra(spectra, evidence=evidence),
        "tracking": plot_tracking(followed),
    }
    for name, axes in figures.items():
        said = words(axes)
        assert ("bound" in said if kind == "certified" else "estimate" in said) or name != "tracking"
        assert (kind in said) or (name, kind) == ("tracking", "certified"), name
        assert not any(other in said for other in {"certified", "sampled", "claimed"} - {kind}), (name, said)
        colours = {entry.get_color() for entry in axes.lines}
        assert (BLUE in colours, PURPLE in colours) == (kind == "certified", kind != "certified"), name
        assert_readable(axes, name)


def test_what_is_no_evidence_of_contraction_is_refused(spiral, pairs):
    convergence = fixed_input_convergence(spiral[0])
    for evidence in (0.3, convergence, spiral[1].metric):
        for draw in (
            lambda e: plot_distance(TIMES, pairs, evidence=e),
            lambda e: plot_spectra({"W": torch.zeros(2, dtype=torch.complex128)}, evidence=e),
            lambda e: track(spiral[0], lambda t: spiral[0].problem.q, TIMES, evidence=e),
        ):
            with pytest.raises(InputError, match=r"\bevidence\b"):
                draw(evidence)


# ---------------------------------------------------------------------------------------------------- phase portrait


@pytest.mark.parametrize(
    "metric",
    [
        FullP(torch.tensor([[2.0, 0.6], [0.6, 0.5]], dtype=F64)),
        WeightedL1(torch.tensor([1.0, 3.0], dtype=F64)),
        WeightedLinf(torch.tensor([1.0, 3.0, 0.5], dtype=F64)),
    ],
    ids=lambda m: type(m).__name__,
)
def test_points_of_the_unit_sphere_have_norm_one(metric):
    assert torch.allclose(metric.norm(unit_sphere(metric, 50)), torch.ones(50, dtype=F64))


def test_a_linear_flow_carries_a_ball_exactly():
    """s' = −cs shrinks every ball at rate c, and no faster."""
    metric = FullP(torch.tensor([[2.0, 0.6], [0.6, 0.5]], dtype=F64))
    flow = LinearFlow(-0.7 * torch.eye(2, dtype=F64))
    carried = carry_ball(flow, torch.ones(2, dtype=F64), 0.5, TIMES, evidence=Claim(metric=metric, rate=0.7))
    assert torch.allclose(carried.reached, carried.radius, rtol=1e-6)
    assert torch.allclose(carried.radius, 0.5 * torch.exp(-0.7 * TIMES))
    too_fast = carry_ball(flow, torch.ones(2, dtype=F64), 0.5, TIMES, evidence=Claim(metric=metric, rate=0.71))
    assert float((too_fast.reached / too_fast.radius)[-1]) == pytest.approx(math.exp(0.04), rel=1e-5)


def test_balls_are_those_of_the_metric(spiral, ball):
    flow, certificate = spiral
    axes = plot_phase_portrait(flow, **LIMITS, ball=ball, balls=4, equilibrium=torch.zeros(2))
    rings = [np.array(entry.get_data()).T for entry in axes.lines if entry.get_linestyle() == "--"]
    assert len(rings) == len(axes.patches) - len([p for p in axes.patches if not hasattr(p, "get_xy")]) >= 3
    for ring, patch in zip(rings, [p for p in axes.patches if hasattr(p, "get_xy")], strict=True):
        at = int(np.argmin([np.abs(image.numpy() - patch.get_xy()[:-1]).max() for image in ball.sphere]))
        assert np.allclose(patch.get_xy()[:-1], ball.sphere[at])
        radii = certificate.metric.norm(torch.tensor(ring) - ball.centre[at])
        assert torch.allclose(radii, ball.radius[at].expand(len(radii)))
    assert "stays inside" in axes.get_title(loc="left")


def test_a_ball_that_is_too_small_is_seen(spiral):
    flow, certificate = spiral
    wrong = carry_ball(
        flow, torch.zeros(2, dtype=F64), 0.4, TIMES, evidence=claim(2.0, certificate.metric), points=20,
        integrator=AdaptiveStep(rtol=1e-5),
    )  # fmt: skip
    axes = plot_phase_portrait(flow, **LIMITS, ball=wrong)
    assert axes.get_title(loc="left") == "An image leaves its claimed ball"


def test_nullclines_are_where_a_unit_rests(spiral):
    flow, _ = spiral
    axes = plot_phase_portrait(flow, **LIMITS)
    curves = [c for c in axes.collections if type(c).__name__ == "QuadContourSet"]
    assert len(curves) == 2
    for unit, curve in enumerate(curves):
        points = torch.tensor(np.concatenate([path.vertices for path in curve.get_paths()]))
        assert float(flow(0.0, points)[:, unit].abs().max()) < 1e-3


def test_the_film_moves_the_certified_ball(spiral, ball):
    flow, certificate = spiral
    film = animate_phase_portrait(flow, ball, **LIMITS, frames=5)
    image, ring, path = film._func(4)
    radii = certificate.metric.norm(torch.tensor(np.array(ring.get_data()).T) - ball.centre[-1])
    assert torch.allclose(radii, ball.radius[-1].expand(len(radii)))
    assert np.allclose(image.get_xy()[:-1], ball.sphere[-1]) and len(path.get_xdata()) == len(TIMES)
    film._draw_was_started = True  # it was looked at, not forgotten


@pytest.mark.parametrize(
    "flow",
    [
        FiringRate().bind(EquilibriumProblem(linear=Dense(SPIRAL), q=torch.ones(1, 2), activation=Tanh())),
        LinearFlow(SPIRAL),
        NeuralFlow(FieldOfTime()),
        NeuralFlow(lambda t, z: z @ SPIRAL.mT),
    ],
    ids=["problem", "linear", "module", "function"],
)
def test_a_flow_in_single_precision_is_drawn_in_its_own(flow):
    carried = carry_ball(
        flow, torch.ones(2), 0.4, TIMES.float(), evidence=claim(0.1), points=10,
        integrator=AdaptiveStep(rtol=1e-3),
    )  # fmt: skip
    assert carried.centre.dtype == torch.float32
    axes = plot_phase_portrait(flow, **LIMITS, ball=carried)
    curves = [c for c in axes.collections if type(c).__name__ == "QuadContourSet"]
    assert len(curves) == 2
    for unit, curve in enumerate(curves):
        points = torch.tensor(np.concatenate([path.vertices for path in curve.get_paths()]), dtype=torch.float32)
        assert float(flow(0.0, points)[:, unit].detach().abs().max()) < 1e-3
    film = animate_phase_portrait(flow, carried, **LIMITS, frames=2)
    film._func(1)
    film._draw_was_started = True


def test_only_the_plane_is_drawn(spiral):
    with pytest.raises(InputError, match=r"\bequilibrium\b"):
        plot_phase_portrait(spiral[0], **LIMITS, equilibrium=torch.zeros(3))
    with pytest.raises(InputError, match=r"\bcentre\b"):
        carry_ball(spiral[0], torch.zeros(1, 2), 1.0, TIMES, evidence=claim(1.0))


@pytest.mark.parametrize("n", [2, 3])
def test_no_points_make_no_sphere(n):
    for points in (0, -1, 0.5):
        with pytest.raises(InputError, match=r"\bpoints\b"):
            unit_sphere(WeightedL2(torch.ones(n)), points)
    assert unit_sphere(WeightedL2(torch.ones(n)), 1).shape == (1, n)


def test_a_ball_needs_a_metric_and_a_number_as_its_rate(spiral):
    centre, metric = torch.zeros(2, dtype=F64), WeightedL2(torch.ones(2))
    for rate in (None, "fast", math.nan, math.inf):
        with pytest.raises(InputError, match=r"\brate\b"):
            Claim(metric=metric, rate=rate)
    with pytest.raises(InputError, match=r"\bmetric\b"):
        Claim(metric="l2", rate=1.0)
    for evidence in (1.0, None, metric):
        with pytest.raises(InputError, match=r"\bevidence\b"):
            carry_ball(spiral[0], centre, 1.0, TIMES, evidence=evidence)
    with pytest.raises(InputError, match=r"\btimes\b"):  # a ball is not contained backwards
        carry_ball(spiral[0], centre, 1.0, TIMES.flip(0), evidence=claim(1.0))


# ---------------------------------------------------------------------------------------------------- complex plane


def test_the_boundary_of_a_numerical_range():
    segment = boundary(torch.tensor([[0.0, 3.0], [-3.0, 0.0]], dtype=F64))  # normal: the hull of ±3j
    assert float(segment.real.abs().max()) < 1e-12 and float(segment.imag.max()) == pytest.approx(3)
    M = torch.randn(5, 5, dtype=F64, generator=torch.Generator().manual_seed(2))
    points = boundary(M, points=721)
    for k in (0, 90, 200, 500):
        angle = 2 * math.pi * k / 720
        direction = complex(math.cos(angle), -math.sin(angle))
        farthest = float((direction * points).real.max())
        assert farthest == pytest.approx(support(M, angle), abs=1e-12)
        x = torch.randn(2000, 5, dtype=torch.complex128, generator=torch.Generator().manual_seed(3))
        forms = (x.conj() * (x @ M.to(x.dtype).mT)).sum(-1) / (x.conj() * x).sum(-1)
        assert float((direction * forms).real.max()) <= farthest + 1e-12


def test_the_range_touches_the_parabola_of_its_certificate():
    W, _ = monotone_weight(4, seed=3, skew=1.0, monotonicity=0.3)
    certificate = ParabolaTest(optimise=5).certify(FiringRateSystem(W=W))
    points = boundary(scaled(W, certificate.multiplier), points=1441)
    axes = plot_numerical_range({"W": points}, rate=certificate.rate)
    x, y = line(axes, "parabola of rate").get_data()
    s = 1 - certificate.rate
    assert np.allclose(x, s - y**2 / (4 * s))
    # g(ω) = ½(|ω| + Re ω) is s on the parabola
    assert float(((points.abs() + points.real) / 2).max()) == pytest.approx(s, abs=1e-4)
    assert axes.get_title(loc="left") == "Inside the parabola: W"
    assert "none" in plot_numerical_range({"W": points}, rate=certificate.rate + 0.01).get_title(loc="left")
    assert any(np.allclose(entry.get_xdata(), 1.0) for entry in axes.lines)  # the half-plane of Condition 1


def test_the_known_trap_fills_the_half_plane_and_leaves_the_parabola():
    K = torch.tensor([[0.0, 1.0], [-1.0, 0.0]], dtype=F64)
    axes = plot_numerical_range({"k = 1": boundary(K), "k = 4": boundary(4 * K)})
    assert axes.get_title(loc="left") == "Inside the parabola: k = 1; within the half-plane: both"


def test_spectra_lie_left_of_the_certified_line():
    W, _ = monotone_weight(4, seed=3, skew=1.0, monotonicity=0.3)
    system = FiringRateSystem(W=W)
    certificate, bound = ParabolaTest(optimise=5).certify(system), abscissa_bound(system)
    slopes = torch.rand(30, 4, dtype=F64, generator=torch.Generator().manual_seed(0))
    groups = {
        "random": torch.linalg.eigvals(system.jacobians(slopes)),
        "worst": torch.linalg.eigvals(system.jacobians(bound.slopes)),
    }
    axes = plot_spectra(groups, evidence=certificate, bound=bound.rate)
    for drawn, values in zip(axes.collections, groups.values(), strict=True):
        assert np.allclose(drawn.get_offsets(), torch.view_as_real(values).flatten(0, -2))
    assert line(axes, "certified").get_xdata()[0] == -certificate.rate
    assert line(axes, "worst found").get_xdata()[0] == pytest.approx(float(groups["worst"].real.max()))
    assert axes.get_title(loc="left").startswith("None of the spectra shown")
    wrong = plot_spectra(groups, evidence=claim(bound.rate + 0.01))
    assert wrong.get_title(loc="left") == "Eigenvalues lie beyond the claimed line"
    with pytest.raises(InputError, match=r"\bspectra\b"):
        plot_spectra({}, evidence=claim(1.0))
    with pytest.raises(InputError, match=r"\branges\b"):
        plot_numerical_range({})


# ---------------------------------------------------------------------------------------------------- families of flows


@pytest.fixture(scope="module")
def skewness():
    W, lam = monotone_weight(3, seed=3, skew=1.0, monotonicity=0.3, spread=0.5)
    return sweep_skewness(W, WeightedL2(lam), torch.tensor([0.0, 1.0, 2.0], dtype=F64)), W, lam


def test_the_sweep_scales_the_skew_part_only(skewness):
    sweep, W, lam = skewness
    own, _, _ = sweep_skewness(W, WeightedL2(lam), torch.tensor([1.0], dtype=F64)), W, lam
    direct = certify(FiringRateSystem(W=W, hint=lam))  # the weight itself has a skew part of size one
    assert own.reports[0].best.rate == pytest.approx(direct.rate, abs=1e-4)
    assert sweep.reports[0].best.rate == pytest.approx(0.3, abs=1e-4)  # self-adjoint: exactly m
    rates = [report.best.rate for report in sweep.reports]
    assert all(report.best.rate <= report.bound.rate + 1e-9 for report in sweep.reports) and rates[2] < rates[0]
    with pytest.raises(InputError, match=r"\bW\b"):
        sweep_skewness(torch.eye(2, dtype=F64), WeightedL2(torch.ones(2, dtype=F64)), torch.ones(1))
    for metric, skewness, message in (
        ("euclidean", torch.ones(1), "metric"),
        (WeightedL2(torch.ones(2, dtype=F64)), 1.0, "skewness"),
        (WeightedL2(torch.ones(2, dtype=F64)), torch.ones(1, 1), "skewness"),
    ):
        with pytest.raises(InputError, match=rf"\b{message}\b"):
            sweep_skewness(torch.eye(2, dtype=F64), metric, skewness)  # type: ignore[arg-type]


def test_negative_sizes_are_refused():
    W, lam = monotone_weight(3, seed=3, skew=1.0)
    with pytest.raises(InputError, match=r"\bskewness\b"):
        sweep_skewness(W, WeightedL2(lam), torch.tensor([0.0, -1.0], dtype=F64))


def test_the_title_speaks_of_the_skew_parts_up_to_the_first_failure():
    """In the order of size, whatever the order they came in."""
    sizes = torch.tensor([8.0, 0.0, 1.0], dtype=F64)
    W, lam = monotone_weight(3, seed=3, skew=1.0, monotonicity=0.3, spread=0.5)
    sweep = sweep_skewness(W, WeightedL2(lam), sizes)
    assert [r.best.contracting for r in sweep.reports] == [False, True, True]
    axes = plot_rates_against_skewness(sweep)
    assert "up to a skew part of 1," in axes.get_title(loc="left")
    assert line(axes, "upper bound").get_xdata().tolist() == [0.0, 1.0, 8.0]
    broken = SkewnessSweep(skewness=torch.tensor([0.5, 0.0, 1.0], dtype=F64), reports=sweep.reports)
    assert "up to a skew part of 0," in plot_rates_against_skewness(broken).get_title(loc="left")
    never = SkewnessSweep(skewness=torch.tensor([0.0, 0.5, 1.0], dtype=F64), reports=sweep.reports)
    assert plot_rates_against_skewness(never).get_title(loc="left").startswith("No certificate")


def test_every_certificate_is_a_line(skewness):
    sweep: SkewnessSweep = skewness[0]
    axes = plot_rates_against_skewness(sweep)
    assert np.allclose(line(axes, "upper bound").get_ydata(), [r.bound.rate for r in sweep.reports])
    drawn = {str(entry.get_label()) for entry in axes.lines}
    assert drawn >= {"ℓ1, Perron", "ℓ∞, Perron", "parabola, best Q", "parabola, given Q", "diagonal metric"}
    explicit = [next(c.rate for c in r.all if c.method == "explicit metric") for r in sweep.reports]
    assert np.allclose(line(axes, "explicit metric").get_ydata(), explicit)
    assert {text.get_text() for text in axes.texts} >= drawn & {"ℓ1, Perron", "explicit metric", "upper bound"}


def test_rates_run_from_the_firing_rate_to_the_inclusion():
    W, lam = monotone_weight(3, seed=4, skew=1.0, monotonicity=0.3)
    sweep = sweep_steps(W, WeightedL2(lam), (1e-3, 1.0))
    assert float(sweep.diagonal[0]) == pytest.approx(0.3, abs=1e-3)
    assert sweep.monotonicity == pytest.approx(0.3, abs=1e-6) and sweep.inclusion.rate >= 0.3 - 1e-6
    assert float(sweep.certified[1]) == pytest.approx(certify(FiringRateSystem(W=W, hint=lam)).rate, abs=1e-3)
    assert torch.all(sweep.diagonal <= sweep.certified + 1e-9) and torch.all(sweep.certified <= sweep.bound + 1e-9)
    axes = plot_rate_against_step(sweep)
    assert np.allclose(line(axes, "certified in Λ").get_ydata(), sweep.diagonal)
    assert line(axes, "inclusion in Λ").get_ydata()[0] == sweep.monotonicity
    assert axes.get_xlim()[0] > axes.get_xlim()[1]  # the firing-rate flow stands left
    assert_readable(axes)


# ---------------------------------------------------------------------------------------------------- energy


@pytest.fixture(scope="module")
def convex():
    problem = EquilibriumProblem(
        linear=Dense(torch.tensor([[0.35, 0.4], [0.4, 0.55]], dtype=F64)),
        q=torch.tensor([[0.5, -0.6]], dtype=F64),
        activation=ReLU(),
        metric=WeightedL2(torch.ones(2, dtype=F64)),
    )
    return Energy(problem), torch.tensor([0.5 / 0.65, 0.0], dtype=F64)  # the second unit is off


def iterates(energy: Energy, step: float, count: int):
    iteration, z = ForwardBackward(step=step).bind(energy.problem, Stop()), torch.tensor([[0.3, 1.4]], dtype=F64)
    kept, state = [z], iteration.init(z)
    for _ in range(count):
        state = iteration.step(state)
        kept.append(iteration.read(state))
    return torch.cat(kept)


@pytest.mark.parametrize("step", [0.1, 0.6, 1.0])
def test_the_energy_falls_by_the_guaranteed_factor(convex, step):
    energy, z = convex
    gap = energy(iterates(energy, step, 8)) - energy(z[None])
    assert torch.all(gap[1:] <= energy.guaranteed_factor(step) * gap[:-1] + 1e-14)
    assert not torch.all(gap[1:] <= 0.2 * energy.guaranteed_factor(step) * gap[:-1])  # it is no empty promise
    with pytest.raises(PreconditionError, match="1/L"):
        energy.guaranteed_factor(1.1 / energy.smoothness)


def test_descent_is_drawn_with_its_certified_line(convex):
    energy, z = convex
    path = iterates(energy, 0.6, 8)
    clock, gap = 0.6 * torch.arange(9, dtype=F64), energy(path) - energy(z[None])
    axes = plot_energy_descent({}, energy=energy, iterations={"iteration": (clock, gap)})
    assert slope(line(axes, "certified")) == pytest.approx(-energy.strong_convexity)
    assert np.allclose(line(axes, "iteration").get_ydata(), gap / gap[0])
    assert axes.get_title(loc="left").startswith("The energy falls")
    rising = plot_energy_descent({"flow": (clock, gap.flip(0))})
    assert rising.get_title(loc="left") == "The energy rises somewhere"
    with pytest.raises(InputError, match=r"\bgaps\b"):
        plot_energy_descent({})


def test_an_energy_in_single_precision_is_drawn(convex):
    double, z = convex
    problem = double.problem
    energy = Energy(
        EquilibriumProblem(
            linear=Dense(problem.linear.to_dense().float()),
            q=problem.q.float(),
            activation=ReLU(),
            metric=WeightedL2(torch.ones(2)),
        )
    )
    path = iterates(double, 0.6, 5)
    for states in (path, path.float()):
        axes = plot_energy_contours(energy, x=(-0.2, 1.6), y=(-0.4, 1.6), equilibrium=z, iterates=states, step=0.6)
        maps = [entry for entry in axes.lines if entry.get_linewidth() == 2.2 and len(entry.get_xdata()) == 2]
        assert len(maps) == 5
        for index, entry in enumerate(maps):
            assert np.allclose(np.array(entry.get_data())[:, 1], path[index + 1], atol=1e-5)


def test_steps_are_a_gradient_step_and_a_proximal_map(convex):
    energy, z = convex
    path = iterates(energy, 0.6, 5)
    axes = plot_energy_contours(energy, x=(-0.2, 1.6), y=(-0.4, 1.6), equilibrium=z, iterates=path, step=0.6)
    maps = [entry for entry in axes.lines if entry.get_linewidth() == 2.2 and len(entry.get_xdata()) == 2]
    assert len(maps) == 5
    for index, entry in enumerate(maps):
        (x0, x1), (y0, y1) = entry.get_data()
        assert np.allclose([x1, y1], path[index + 1])
        assert np.allclose([max(x0, 0), max(y0, 0)], path[index + 1])  # the projection of where the gradient led
    with pytest.raises(InputError, match=r"\biterates and step\b"):
        plot_energy_contours(energy, x=(0, 1), y=(0, 1), equilibrium=z, iterates=path)


# ---------------------------------------------------------------------------------------------------- all of them


@WIDTHS
def test_every_figure_is_readable(width, spiral, ball, pairs, tracked, skewness, convex):
    flow, certificate = spiral
    energy, z = convex
    path = iterates(energy, 0.6, 5)
    clock, gap = 0.6 * torch.arange(6, dtype=F64), energy(path) - energy(z[None])
    ranges = {"W": boundary(flow.problem.linear.to_dense())}
    draws = {
        "distance": lambda a: plot_distance(TIMES, pairs, a, evidence=certificate, bound=0.9),
        "tracking": lambda a: plot_tracking(tracked, a),
        "phase": lambda a: plot_phase_portrait(flow, a, **LIMITS, ball=ball, equilibrium=torch.zeros(2)),
        "range": lambda a: plot_numerical_range(ranges, a),
        "spectra": lambda a: plot_spectra(ranges, a, evidence=claim(-1.0), bound=-0.5),
        "skewness": lambda a: plot_rates_against_skewness(skewness[0], a),
        "descent": lambda a: plot_energy_descent({"flow": (clock, gap)}, a, energy=energy),
        "contours": lambda a: plot_energy_contours(
            energy, a, x=(-0.2, 1.6), y=(-0.4, 1.6), equilibrium=z, flow=path, iterates=path, step=0.6
        ),
    }
    for name, draw in draws.items():
        axes = new_axes(width, 0.6 * width if width == FULL_WIDTH else 1.2 * width)
        assert draw(axes) is axes, name
        assert_readable(axes, name)


def test_labels_at_line_ends_move_apart_and_keep_their_order():
    axes = Figure(figsize=(HALF_WIDTH, HALF_WIDTH)).subplots()
    axes.set_ylim(0, 1)
    texts = label_ends(axes, [(0.5, "b", "k"), (0.49, "a", "k"), (0.51, "c", "k"), (0.95, "d", "k"), (2.0, "e", "k")])
    assert [text.get_text() for text in texts] == ["a", "b", "c", "d", "e"]
    heights = [text.xy[1] for text in texts]
    assert all(b - a > 0.03 for a, b in zip(heights, heights[1:], strict=False))
    assert heights[1] == pytest.approx(0.5)


def test_names_are_complete():
    assert all(callable(getattr(plots, name)) for name in plots.__all__ if name.startswith(("plot_", "animate_")))
