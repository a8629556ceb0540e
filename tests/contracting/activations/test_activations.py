"""Every activation is the proximal operator it claims to be, with its derivatives, and nothing else is let in."""

from __future__ import annotations

import copy
import dataclasses
import pickle
import re
from typing import Any

import mpmath
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from contracting.activations import catalogue as lib
from contracting.activations import names
from contracting.activations.base import Activation, Curved
from contracting.activations.catalogue import ADMISSIBLE
from contracting.activations.names import activation_named, as_activation
from contracting.errors import InputError
from contracting.types import Slopes

pytestmark = pytest.mark.filterwarnings("error")

SIZE = 4
PER_NEURON = torch.logspace(-3, 3, SIZE, dtype=torch.float64)
STEPS = [1e-3, 0.1, 1.0, 7.0, 1e3, PER_NEURON]
SLOPE = lib.Slope(slopes=torch.tensor([0.0, 1e-3, 0.6, 1.0], dtype=torch.float64))
VARIANTS = (
    lib.LeakyReLU(negative_slope=0.3),
    lib.LeakyReLU(negative_slope=0.0),
    lib.LeakyReLU(negative_slope=1.0),
    lib.HardTanh(low=-0.2, high=0.7),
    lib.Softplus(beta=0.1),
    lib.Softplus(beta=30.0),
    lib.ELU(alpha=0.4),
    lib.Softshrink(threshold=1.5),
)
CASES = (*ADMISSIBLE, *VARIANTS, SLOPE)
CURVED = tuple(activation for activation in CASES if not activation.piecewise_linear)
DIFFERENTIATED = (*ADMISSIBLE, lib.ELU(alpha=0.4), lib.LeakyReLU(negative_slope=0.0), SLOPE)
PROJECTIONS = (lib.ReLU, lib.ReLU6, lib.HardTanh, lib.Identity)  # prox = σ for every step


def label(value: Any) -> str | None:
    if isinstance(value, Activation):
        return "Slope" if isinstance(value, lib.Slope) else repr(value)
    return "per-neuron" if isinstance(value, Tensor) else None


def each(name: str, values: Any) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(name, values, ids=label)


def kinks(activation: Activation) -> tuple[float, ...]:
    """Pre-activations at which σ or σ' is not differentiable."""
    match activation:
        case lib.ReLU() | lib.LeakyReLU() | lib.ELU() | lib.Softsign():
            return (0.0,)
        case lib.ReLU6():
            return 0.0, 6.0
        case lib.HardTanh(low=low, high=high):
            return low, high
        case lib.HardSigmoid():
            return -3.0, 3.0
        case lib.Softshrink(threshold=t):
            return -t, t
        case _:
            return ()


def preactivations(activation: Activation, rows: int = 3, scale: float = 2.0, margin: float = 0.1) -> Tensor:
    """Random points (rows, SIZE) that keep clear of the kinks."""
    generator = torch.Generator().manual_seed(7)
    v = scale * torch.randn(rows, SIZE, dtype=torch.float64, generator=generator)
    for kink in kinks(activation):
        v = torch.where((v - kink).abs() < margin, v + 2 * margin, v)
    return v


def point_above(activation: Activation, s: Tensor, step: Any) -> Tensor:
    """The x with prox(x) = σ(s), straight from the optimality condition x = p + αf'(p), f'(σ(s)) = s − σ(s)."""
    p = activation(s)
    return p + step * (s - p)


# The prox ------------------------------------------------------------------------------------------------------------


@each("activation", CASES)
@each("step", STEPS)
def test_prox_satisfies_its_optimality_condition(activation: Activation, step: Any) -> None:
    s = torch.cat([preactivations(activation, rows=40, scale=scale) for scale in (0.01, 2.0, 40.0)])
    x = point_above(activation, s, step)
    p = activation(s)
    error = (activation.prox(x, step) - p).abs()
    # Rounding alone: x carries ε(|p| + α|s|), and the prox is nonexpansive.
    assert bool((error <= 2e-15 * (1 + p.abs() + step * (1 + s.abs()))).all())


@each("activation", CURVED[:4])
@each("step", [0.03, 5.0])
def test_prox_minimises_its_objective(activation: Activation, step: float) -> None:
    targets = torch.tensor([-2.0, -0.3, 0.4, 3.0], dtype=torch.float64)
    x = point_above(activation, targets, step)
    p = activation.prox(x, step)
    # f by quadrature of f'(p) dp = (s − σ(s)) σ'(s) ds, on a curve p = σ(s) through the minimiser
    s = torch.linspace(-5, 5, 10001, dtype=torch.float64)
    f = torch.cumulative_trapezoid((s - activation(s)) * activation.derivative(s), s)
    grid = activation(s[1:])
    objective = 0.5 * (grid[:, None] - x) ** 2 + step * f[:, None]
    torch.testing.assert_close(grid[objective.argmin(0)], p, rtol=0, atol=1e-3)


@each("activation", CASES)
@each("step", [1e-3, 0.1, 7.0, 1e3])
def test_prox_is_monotone_and_nonexpansive(activation: Activation, step: Any) -> None:
    column = torch.cat([torch.linspace(-1000, 1000, 401), torch.linspace(-8, 8, 401), torch.tensor([1e-9, -1e-9])])
    x = column.double().sort().values
    x = x[:, None].expand(-1, SIZE) if isinstance(activation, lib.Slope) else x[:, None]
    rise = activation.prox(x, step).diff(dim=0)
    slack = 1e-15 * (1 + step) * (1 + x[1:].abs())
    assert bool((rise >= -slack).all())
    assert bool((rise <= x.diff(dim=0) + slack).all())
    slopes = activation.prox_derivative(x, step)
    assert bool(((slopes >= 0) & (slopes <= 1 + 1e-12)).all())


@each("activation", CASES)
@each("dtype", [torch.float64, torch.float32])
def test_step_one_is_exactly_the_activation(activation: Activation, dtype: torch.dtype) -> None:
    if isinstance(activation, lib.Slope):
        activation = lib.Slope(slopes=activation.values.to(dtype))
    v = torch.cat([preactivations(activation, 50, scale) for scale in (1e-3, 1.0, 30.0, 1e3)]).to(dtype)
    for one in (1, 1.0, torch.tensor(1.0), torch.ones(SIZE, dtype=dtype), torch.ones_like(v)):
        assert torch.equal(activation.prox(v, one), activation(v))
        torch.testing.assert_close(activation.prox_derivative(v, one), activation.derivative(v))


@each("activation", CASES)
def test_every_kind_of_step_gives_the_same_prox(activation: Activation) -> None:
    x = preactivations(activation)
    expected = activation.prox(x, 0.3)
    for shape in ((), (SIZE,), (1, 1), x.shape):
        step = torch.full(shape, 0.3, dtype=torch.float64)
        torch.testing.assert_close(activation.prox(x, step), expected, rtol=1e-13, atol=1e-13)
    columns = [activation.prox(x, float(step))[:, i] for i, step in enumerate(PER_NEURON)]
    torch.testing.assert_close(activation.prox(x, PER_NEURON), torch.stack(columns, 1), rtol=1e-12, atol=1e-13)


MPMATH = {"tanh": mpmath.tanh, "softplus": lambda s: mpmath.log1p(mpmath.exp(s))}


def exact_prox(name: str, x: float, step: float) -> mpmath.mpf:
    """prox by 150 bisections in 40 digits."""
    sigma = MPMATH[name]
    low, high = mpmath.mpf(-(10**7)), mpmath.mpf(10**7)
    for _ in range(150):
        s = (low + high) / 2
        p = sigma(s)
        low, high = (s, high) if p + mpmath.mpf(step) * (s - p) < mpmath.mpf(x) else (low, s)
    return sigma((low + high) / 2)


@pytest.mark.parametrize("step", [1e-3, 0.7, 1e3])
@pytest.mark.parametrize("name", ["tanh", "softplus"])
def test_prox_agrees_with_forty_digit_arithmetic(name: str, step: float) -> None:
    points = [-1000.0, -3.0, -0.01, -1e-6, 0.0, 1e-3, 0.9995, 1.0, 3.5, 60.0, 1000.0]
    p = activation_named(name).prox(torch.tensor(points, dtype=torch.float64), step)
    with mpmath.workdps(40):
        for x, got in zip(points, p.tolist(), strict=True):
            exact = exact_prox(name, x, step)
            # softplus has no cancellation to amplify, but e^s inherits the absolute error of a large negative s
            allowed = 2e-16 * max(20, abs(x) / step) if name == "softplus" else 4e-16 * max(4, step)
            assert abs(got - exact) <= allowed * abs(exact) + 1e-30, (x, got, exact)


@each("activation", CASES)
def test_single_precision(activation: Activation) -> None:
    narrow = lib.Slope(slopes=activation.values.float()) if isinstance(activation, lib.Slope) else activation
    wide = torch.cat([preactivations(activation, 50, scale) for scale in (0.01, 1.0, 300.0)]).float().double()
    for step in (1e-3, 0.1, 7.0, 1e3):
        rounded = float(torch.tensor(step, dtype=torch.float32))
        expected = activation.prox(wide, rounded)
        p = narrow.prox(wide.float(), rounded)
        assert p.dtype == torch.float32
        assert bool(((p - expected).abs() <= 1e-6 + 3e-7 * max(4, step) * expected.abs()).all()), step


@each("activation", CURVED)
def test_search_is_short(activation: Activation) -> None:
    class Counting(type(activation)):  # type: ignore[misc]
        def slope(self, v: Tensor) -> Tensor:
            counts.append(1)
            return super().slope(v)

    counts: list[int] = []
    counting = Counting(**dataclasses.asdict(activation))
    x = torch.cat([torch.linspace(-1e3, 1e3, 401), torch.linspace(-9, 9, 401), torch.logspace(-12, 3, 100)])
    for dtype in (torch.float64, torch.float32):
        for step in torch.logspace(-3, 3, 7).tolist():
            counts.clear()
            counting.prox(x.to(dtype), step)
            assert len(counts) <= 12


class Wavy(Curved):
    """A staircase σ(v) = (v − 0.999 sin v) / 2, admissible, on which Newton's method alone runs away."""

    slopes = Slopes(0.0005, 0.9995)

    def value(self, v: Tensor) -> Tensor:
        return (v - 0.999 * torch.sin(v)) / 2

    def slope(self, v: Tensor) -> Tensor:
        return (1 - 0.999 * torch.cos(v)) / 2


@each("step", [1e-3, 0.03, 50.0])
def test_bisection_rescues_an_activation_on_which_newton_runs_away(step: float) -> None:
    s = torch.linspace(-300, 300, 5001, dtype=torch.float64)
    x = point_above(Wavy(), s, step)
    torch.testing.assert_close(Wavy().prox(x, step), Wavy()(s), rtol=1e-12, atol=1e-11)


@each("activation", CASES)
def test_a_bad_entry_fails_alone(activation: Activation) -> None:
    for step in (0.05, 1.0, 20.0):
        check_bad_entry(activation, step)


def check_bad_entry(activation: Activation, step: float) -> None:
    clean = preactivations(activation)
    x = clean.clone()
    x[1, 2] = torch.nan
    keep = ~x.isnan()
    for method in (activation.prox, activation.prox_derivative):
        assert torch.equal(method(x, step)[keep], method(clean, step)[keep])
    assert bool(activation.prox(x, step)[1, 2].isnan())
    if not activation.piecewise_linear:
        for bad in (torch.inf, -torch.inf):
            x[1, 2] = bad
            for same in (step, torch.tensor(step)):
                assert torch.equal(activation.prox(x, same).isnan(), ~keep)


@each("activation", CURVED)
def test_an_answer_does_not_move_when_a_stiffer_neighbour_joins(activation: Activation) -> None:
    x = preactivations(activation)
    alone = activation.prox(x, 0.01)[0]
    x[1:] *= 1e3
    assert torch.equal(activation.prox(x, 0.01)[0], alone)


@each("activation", [a for a in ADMISSIBLE if not isinstance(a, PROJECTIONS)])
def test_the_activation_in_place_of_the_prox_is_wrong(activation: Activation) -> None:
    x = torch.linspace(-5, 5, 401, dtype=torch.float64)
    gap = (activation.prox(x, 0.3) - activation(x)).abs().max()
    assert float(gap) > (0.1 if activation == lib.Tanh() else 0.01)


@each("activation", [a for a in CASES if isinstance(a, PROJECTIONS)])
def test_projections_are_their_own_prox(activation: Activation) -> None:
    x = preactivations(activation)
    for step in STEPS:
        assert torch.equal(activation.prox(x, step), activation(x))


def test_the_trap_moves_the_equilibrium_of_tanh_but_not_of_relu() -> None:
    def residual(activation: Activation, use_prox: bool) -> float:
        w, q, step = -2.0, torch.tensor([1.5], dtype=torch.float64), 0.25
        z = torch.zeros_like(q)
        for _ in range(100):
            forward = z - step * (z - w * z - q)
            z = activation.prox(forward, step) if use_prox else activation(forward)
        return float((z - activation(w * z + q)).abs())

    assert residual(lib.Tanh(), use_prox=True) < 1e-14
    assert residual(lib.Tanh(), use_prox=False) > 0.05
    assert residual(lib.ReLU(), use_prox=True) < 1e-14
    assert residual(lib.ReLU(), use_prox=False) < 1e-14


# Values and derivatives ----------------------------------------------------------------------------------------------

TORCH: list[tuple[Activation, Any]] = [
    (lib.ReLU(), torch.relu),
    (lib.LeakyReLU(), F.leaky_relu),
    (lib.LeakyReLU(negative_slope=0.3), nn.LeakyReLU(0.3)),
    (lib.ReLU6(), F.relu6),
    (lib.HardTanh(), F.hardtanh),
    (lib.HardTanh(low=-0.2, high=0.7), nn.Hardtanh(-0.2, 0.7)),
    (lib.Tanh(), torch.tanh),
    (lib.Sigmoid(), torch.sigmoid),
    (lib.Softplus(), F.softplus),
    (lib.Softplus(beta=30.0), nn.Softplus(beta=30.0)),
    (lib.ELU(), F.elu),
    (lib.ELU(alpha=0.4), nn.ELU(alpha=0.4)),
    (lib.Softsign(), F.softsign),
    (lib.Arctan(), torch.atan),
    (lib.HardSigmoid(), F.hardsigmoid),
    (lib.Softshrink(), F.softshrink),
    (lib.Softshrink(threshold=1.5), nn.Softshrink(1.5)),
    (lib.Identity(), nn.Identity()),
]


@pytest.mark.parametrize(("activation", "function"), TORCH)
@each("dtype", [torch.float64, torch.float32])
def test_values_and_slopes_agree_with_torch(activation: Activation, function: Any, dtype: torch.dtype) -> None:
    # The kinks are included: there the smallest element of Clarke's set is what torch's autograd takes.
    v = torch.cat([torch.linspace(-60, 60, 4801), torch.tensor(kinks(activation))]).to(dtype).requires_grad_()
    expected = function(v)
    tolerance = 3e-9 if isinstance(activation, lib.Softplus) else 1e-15  # torch cuts softplus off at βv = 20
    tolerance = max(tolerance, 2 * torch.finfo(dtype).eps)
    torch.testing.assert_close(activation(v), expected, rtol=tolerance, atol=tolerance)
    (slope,) = torch.autograd.grad(expected.sum(), v)
    if isinstance(activation, lib.HardSigmoid):
        tolerance = 1e-7  # torch's slope of hardsigmoid is 1/6 in single precision even in float64
    torch.testing.assert_close(activation.derivative(v).detach(), slope, rtol=tolerance, atol=tolerance)


def test_softplus_is_accurate_where_torch_cuts_it_off() -> None:
    v = torch.tensor([-700.0, -50.0, 19.9, 20.1, 30.0, 39.9, 40.1, 800.0], dtype=torch.float64, requires_grad=True)
    value, slope = lib.Softplus()(v), lib.Softplus().derivative(v)
    (by_autograd,) = torch.autograd.grad(value.sum(), v)
    torch.testing.assert_close(slope, by_autograd, rtol=1e-15, atol=0)
    with mpmath.workdps(40):
        for point, got in zip(v.tolist(), value.tolist(), strict=True):
            exact = mpmath.log1p(mpmath.exp(point))
            assert abs(got - exact) <= 3e-16 * exact


@each("activation", CASES)
def test_derivative_matches_autograd_and_finite_differences(activation: Activation) -> None:
    v = preactivations(activation, rows=20).requires_grad_()
    slope = activation.derivative(v)
    (by_autograd,) = torch.autograd.grad(activation(v).sum(), v)
    torch.testing.assert_close(slope, by_autograd, rtol=1e-13, atol=1e-15)
    h = 1e-5
    difference = (activation(v + h) - activation(v - h)) / (2 * h)
    torch.testing.assert_close(slope, difference, rtol=1e-6, atol=1e-7)


@each("activation", CASES)
def test_prox_derivative_matches_autograd(activation: Activation) -> None:
    for step in STEPS:
        x = point_above(activation, preactivations(activation, rows=20), step).requires_grad_()
        (by_autograd,) = torch.autograd.grad(activation.prox(x, step).sum(), x)
        torch.testing.assert_close(activation.prox_derivative(x, step), by_autograd, rtol=1e-12, atol=1e-15)


@each("activation", CASES)
def test_slopes_fill_their_interval_and_never_leave_it(activation: Activation) -> None:
    column = torch.cat([torch.linspace(-600, 600, 2401), torch.linspace(-8, 8, 3201), torch.tensor(kinks(activation))])
    slope = activation.derivative(column.double()[:, None].expand(-1, SIZE))
    low, high = activation.slopes
    assert 0 <= low <= high <= 1
    assert low - 1e-15 <= float(slope.min()) <= low + 1e-3
    assert high - 1e-3 <= float(slope.max()) <= high + 1e-15


@each("activation", DIFFERENTIATED)
def test_gradients_of_value_and_derivative(activation: Activation) -> None:
    v = preactivations(activation, rows=1).requires_grad_()
    assert torch.autograd.gradcheck(activation, v)
    assert torch.autograd.gradgradcheck(activation, v)
    if activation.piecewise_linear:
        assert not activation.derivative(v).requires_grad
    else:
        assert torch.autograd.gradcheck(activation.derivative, v)
        assert torch.autograd.gradgradcheck(activation.derivative, v)


@each("activation", DIFFERENTIATED)
@each("step", [0.1, 1.0, PER_NEURON])
def test_gradients_of_prox(activation: Activation, step: Any) -> None:
    x = point_above(activation, preactivations(activation, rows=1), step).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: activation.prox(x, step), x)
    assert torch.autograd.gradgradcheck(lambda x: activation.prox(x, step), x)
    if not activation.piecewise_linear:
        assert torch.autograd.gradcheck(lambda x: activation.prox_derivative(x, step), x)


@each("activation", [a for a in DIFFERENTIATED if not isinstance(a, PROJECTIONS)])
def test_gradients_with_respect_to_the_step(activation: Activation) -> None:
    step = torch.logspace(-0.7, 0.9, SIZE, dtype=torch.float64).requires_grad_()
    x = point_above(activation, preactivations(activation, rows=2), step).detach().requires_grad_()
    assert torch.autograd.gradcheck(activation.prox, (x, step))
    assert torch.autograd.gradgradcheck(activation.prox, (x[:1], step))
    assert torch.autograd.gradcheck(activation.prox_derivative, (x[:1], step))


@each("shape", [(), (1, 1), (2, SIZE)])
def test_gradients_reach_a_step_of_any_shape(shape: tuple[int, ...]) -> None:
    step = torch.full(shape, 0.6, dtype=torch.float64, requires_grad=True)
    for activation in (lib.Tanh(), lib.HardSigmoid()):
        x = preactivations(activation, rows=2)
        assert torch.autograd.gradcheck(lambda step, x=x, prox=activation.prox: prox(x, step), step)


def test_third_derivatives_of_prox() -> None:
    def second(x: Tensor) -> Tensor:
        (first,) = torch.autograd.grad(lib.Tanh().prox(x, 0.3).sum(), x, create_graph=True)
        return torch.autograd.grad(first.sum(), x, create_graph=True)[0]

    assert torch.autograd.gradcheck(second, preactivations(lib.Tanh(), rows=2).requires_grad_())


# Slope ---------------------------------------------------------------------------------------------------------------


def test_slope_is_linear_with_an_exact_zero() -> None:
    x = torch.full((2, SIZE), 1e300, dtype=torch.float64)
    for step in STEPS:
        p = SLOPE.prox(x, step)
        assert torch.equal(p[:, 0], torch.zeros(2, dtype=torch.float64))
        assert torch.equal(p[:, -1], x[:, -1]) or torch.allclose(p[:, -1], x[:, -1], rtol=1e-15)
    assert torch.equal(SLOPE(x), SLOPE.values * x)
    assert torch.equal(SLOPE.derivative(x), SLOPE.values.expand_as(x))


@pytest.mark.parametrize("shape", [(SIZE,), (2, SIZE)])
def test_slope_is_differentiable_in_its_slopes(shape: tuple[int, ...]) -> None:
    slopes = torch.linspace(0.05, 0.95, shape[0] * (shape + (1,))[1], dtype=torch.float64).reshape(shape)
    x = torch.randn(2, SIZE, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    inputs = (slopes.requires_grad_(), x.requires_grad_(), torch.tensor(0.4, dtype=torch.float64, requires_grad=True))

    def prox(slopes: Tensor, x: Tensor, step: Tensor) -> Tensor:
        return lib.Slope(slopes=slopes).prox(x, step)

    assert torch.autograd.gradcheck(prox, inputs)
    assert torch.autograd.gradgradcheck(prox, inputs)
    assert torch.autograd.gradcheck(lambda s, x: lib.Slope(slopes=s)(x), inputs[:2])


def test_slope_follows_its_rows_and_tensors() -> None:
    slopes = torch.rand(4, SIZE, generator=torch.Generator().manual_seed(2))
    batch, shared = lib.Slope(slopes=slopes), lib.Slope(slopes=slopes[0])
    keep = torch.tensor([True, False, True, False])
    selected = batch.rows(keep)
    assert isinstance(selected, lib.Slope)
    assert torch.equal(selected.values, slopes[keep])
    assert shared.rows(keep) is shared
    (tensor,) = batch.tensors()
    assert tensor is slopes
    again = batch.with_tensors([2 * slopes])
    assert isinstance(again, lib.Slope)
    assert torch.equal(again.values, 2 * slopes)
    with pytest.raises(InputError, match=r"\btensors\b"):
        batch.with_tensors(())


@each("activation", ADMISSIBLE)
def test_other_activations_hold_no_tensors(activation: Activation) -> None:
    assert activation.tensors() == ()
    assert activation.with_tensors(()) is activation
    assert activation.rows(torch.tensor([0])) is activation
    with pytest.raises(InputError, match=r"\btensors\b"):
        activation.with_tensors([torch.ones(1)])


def test_slopes_are_checked_unless_they_are_trusted() -> None:
    for bad in ([0.0, 1.5], [-0.1, 1.0], [0.5, float("nan")]):
        assert torch.equal(lib.Slope.trusted(torch.tensor(bad)).values.isnan(), torch.tensor(bad).isnan())
        with pytest.raises(InputError, match=r"\bslopes\b"):
            lib.Slope(slopes=torch.tensor(bad))
    for wrong in ([0.5], torch.tensor([1, 0]), torch.tensor(0.5), torch.zeros(1, 1, 1)):
        with pytest.raises(InputError, match=r"\bslopes\b"):
            lib.Slope(slopes=wrong)  # type: ignore[arg-type]


# Records, settings and look-up ---------------------------------------------------------------------------------------


@each("activation", CASES)
def test_activations_are_frozen_records_that_can_be_copied(activation: Activation) -> None:
    (name, *_) = [field.name for field in dataclasses.fields(activation)] or ["anything"]  # type: ignore[arg-type]
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(activation, name, 0.5)
    v = preactivations(activation)
    for twin in (copy.deepcopy(activation), pickle.loads(pickle.dumps(activation))):
        assert torch.equal(twin(v), activation(v))
        assert twin == activation or isinstance(activation, lib.Slope)


@pytest.mark.parametrize(
    ("kind", "settings", "names"),
    [
        (lib.LeakyReLU, {"negative_slope": -0.1}, "negative_slope"),
        (lib.LeakyReLU, {"negative_slope": 1.1}, "negative_slope"),
        (lib.LeakyReLU, {"negative_slope": "steep"}, "negative_slope"),
        (lib.HardTanh, {"low": 1.0, "high": 1.0}, "high"),
        (lib.HardTanh, {"low": 2.0}, "high"),
        (lib.HardTanh, {"low": float("nan")}, "low"),
        (lib.Softplus, {"beta": 0.0}, "beta"),
        (lib.Softplus, {"beta": float("inf")}, "beta"),
        (lib.ELU, {"alpha": 0.0}, "alpha"),
        (lib.ELU, {"alpha": 1.5}, "alpha"),
        (lib.Softshrink, {"threshold": 0.0}, "threshold"),
        (lib.Softshrink, {"threshold": -1.0}, "threshold"),
    ],
)
def test_bad_settings_are_refused_by_name(kind: type, settings: dict[str, Any], names: str) -> None:
    with pytest.raises(InputError, match=rf"\b{names}\b"):
        kind(**settings)


def test_settings_are_keyword_only() -> None:
    with pytest.raises(TypeError):
        lib.LeakyReLU(0.1)  # type: ignore[misc]


@pytest.mark.parametrize(
    "step",
    [0, -1.0, float("nan"), float("inf"), True, "1", None, torch.tensor(1), torch.ones(SIZE - 1), torch.ones(2, SIZE)]
    + [torch.ones(1, 3, SIZE), torch.ones(SIZE, dtype=torch.float64)],
    ids=label,
)
@each("activation", [lib.Tanh(), lib.ReLU()])
def test_bad_steps_are_refused_by_name(activation: Activation, step: Any) -> None:
    for method in (activation.prox, activation.prox_derivative):
        with pytest.raises(InputError, match=r"\bstep\b"):
            method(torch.zeros(3, SIZE), step)


def test_integer_points_are_refused_by_name() -> None:
    whole = torch.tensor([1, 2])
    with pytest.raises(InputError, match=r"\bv\b"):
        lib.ReLU()(whole)
    with pytest.raises(InputError, match=r"\bv\b"):
        lib.ReLU().derivative(whole)
    with pytest.raises(InputError, match=r"\bx\b"):
        lib.ReLU().prox(whole, 1.0)


@pytest.mark.parametrize(
    ("value", "expected"),
    [(function, activation) for activation, function in TORCH if function is not torch.atan]
    + [
        (nn.ReLU(), lib.ReLU()),
        (nn.ReLU, lib.ReLU()),
        (nn.ReLU6(), lib.ReLU6()),
        (nn.Tanh(), lib.Tanh()),
        (nn.Sigmoid(), lib.Sigmoid()),
        (nn.Softplus(beta=2), lib.Softplus(beta=2)),
        (nn.ELU(), lib.ELU()),
        (nn.Hardtanh(-2.0, 3.0), lib.HardTanh(low=-2.0, high=3.0)),
        (nn.Softsign(), lib.Softsign()),
        (nn.Hardsigmoid(), lib.HardSigmoid()),
        (nn.Softshrink(), lib.Softshrink()),
        (F.relu, lib.ReLU()),
        (F.tanh, lib.Tanh()),
        (F.sigmoid, lib.Sigmoid()),
        (torch.arctan, lib.Arctan()),
        (lib.Tanh, lib.Tanh()),
        (lib.ELU(alpha=0.5), lib.ELU(alpha=0.5)),
    ],
    ids=label,
)
def test_as_activation(value: Any, expected: Activation) -> None:
    assert as_activation(value) == expected


def test_as_activation_keeps_an_instance() -> None:
    assert as_activation(SLOPE) is SLOPE


@each("activation", ADMISSIBLE)
def test_activations_are_found_by_name(activation: Activation) -> None:
    name = type(activation).__name__
    for spelling in (name, name.lower(), name.upper(), re.sub("(?<=[a-z])(?=[A-Z])", "_", name)):
        assert activation_named(spelling) == activation


def slope_range(function: Any) -> tuple[float, float]:
    v = torch.linspace(-12, 12, 48001, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(function(v).sum(), v)
    return float(slope.min()), float(slope.max())


@pytest.mark.parametrize("module", [nn.GELU(), nn.SiLU(), nn.Mish(), nn.Hardswish(), nn.SELU()], ids=label)
def test_inadmissible_activations_are_refused_for_a_true_reason(module: nn.Module) -> None:
    name = type(module).__name__
    for ask in (
        lambda: as_activation(module),
        lambda: as_activation(type(module)),
        lambda: as_activation(getattr(F, name.lower())),
        lambda: activation_named(name),
    ):
        with pytest.raises(InputError, match=rf"(?i)^{name}\b") as refusal:
            ask()
        found = re.search(r"not (\w+): its slope (?:falls to|reaches) (-?[\d.]+),", str(refusal.value))
        assert found is not None
        low, high = slope_range(module)
        assert low < 0 if found[1] == "monotone" else high > 1
        assert float(found[2]) == pytest.approx(low if found[1] == "monotone" else high, rel=5e-3)
    assert names.INADMISSIBLE[name.lower()] == pytest.approx((low, high), rel=5e-3, abs=1e-4)


@pytest.mark.parametrize("module", [nn.CELU(0.5), nn.LogSigmoid(), nn.Tanhshrink()], ids=label)
def test_absent_activations_are_not_called_inadmissible(module: nn.Module) -> None:
    low, high = slope_range(module)
    assert low >= 0
    assert high <= 1
    with pytest.raises(InputError, match="admissible but not available"):
        as_activation(module)


def test_elu_steeper_than_one_is_refused_for_a_true_reason() -> None:
    assert slope_range(nn.ELU(alpha=1.5))[1] == pytest.approx(1.5, rel=1e-3)
    with pytest.raises(InputError, match=r"\balpha\b"):
        as_activation(nn.ELU(alpha=1.5))


def test_softplus_with_a_low_threshold_is_refused_for_a_true_reason() -> None:
    module = nn.Softplus(threshold=1.0)
    below, above = module(torch.tensor([1.0, 1.0001])).tolist()
    assert above < below
    with pytest.raises(InputError, match=r"\bthreshold\b"):
        as_activation(module)


class Imposter(nn.ReLU):
    """A module that looks like ReLU and is not."""

    def forward(self, input: Tensor) -> Tensor:
        return -input


def relu(v: Tensor) -> Tensor:
    """A function with the name of another."""
    return v**2


@pytest.mark.parametrize(
    "value",
    [Imposter(), Imposter, relu, lambda v: v, nn.PReLU(), nn.Linear(2, 2), nn.Softmax(dim=-1), nn.LeakyReLU(2.0)]
    + [torch.sin, lib.Slope, Activation, None, 3, "relu"],
    ids=label,
)
def test_strangers_are_refused(value: Any) -> None:
    with pytest.raises(InputError, match=r"\b(activation|negative_slope)\b"):
        as_activation(value)


def test_unknown_names_are_answered_with_the_list() -> None:
    with pytest.raises(InputError, match=r"'swoosh'.*\brelu\b.*\bidentity\b"):
        activation_named("swoosh")
