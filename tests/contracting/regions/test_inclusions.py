"""Intervals hold what exact arithmetic gives: every operation against numbers of 60 digits and against points."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

import mpmath
import pytest
import torch
from torch import Tensor, nn

from contracting import InputError
from contracting.regions import duals, functions, rules
from contracting.regions import intervals as iv
from contracting.regions.functions import FUNCTIONS, ScalarFunction
from contracting.regions.intervals import Interval
from contracting.regions.tracing import Inclusion

mp = mpmath.mp.clone()
mp.dps = 60

Exact = Callable[[mpmath.mpf], mpmath.mpf]


def logistic(x: mpmath.mpf) -> mpmath.mpf:
    return 1 / (1 + mp.exp(-x))


# name, σ, σ′, the interval in which points are taken
EXACT: dict[str, tuple[ScalarFunction, Exact, Exact, float, float]] = {
    "abs": (FUNCTIONS["abs"], abs, mp.sign, -3, 3),
    "asinh": (FUNCTIONS["asinh"], mp.asinh, lambda x: 1 / mp.sqrt(1 + x * x), -40, 40),
    "atan": (FUNCTIONS["atan"], mp.atan, lambda x: 1 / (1 + x * x), -40, 40),
    "cos": (FUNCTIONS["cos"], mp.cos, lambda x: -mp.sin(x), -50, 50),
    "cosh": (FUNCTIONS["cosh"], mp.cosh, mp.sinh, -8, 8),
    "erf": (FUNCTIONS["erf"], mp.erf, lambda x: 2 / mp.sqrt(mp.pi) * mp.exp(-x * x), -5, 5),
    "exp": (FUNCTIONS["exp"], mp.exp, mp.exp, -30, 30),
    "expm1": (FUNCTIONS["expm1"], mp.expm1, mp.exp, -5, 5),
    "log": (FUNCTIONS["log"], mp.log, lambda x: 1 / x, 1e-3, 50),
    "log1p": (FUNCTIONS["log1p"], mp.log1p, lambda x: 1 / (1 + x), -0.9, 9),
    "neg": (FUNCTIONS["neg"], lambda x: -x, lambda x: mp.mpf(-1), -3, 3),
    "reciprocal": (FUNCTIONS["reciprocal"], lambda x: 1 / x, lambda x: -1 / x**2, 0.1, 9),
    "relu": (FUNCTIONS["relu"], lambda x: max(x, mp.mpf(0)), lambda x: mp.mpf(x > 0), -3, 3),
    "rsqrt": (FUNCTIONS["rsqrt"], lambda x: 1 / mp.sqrt(x), lambda x: -mp.mpf(0.5) / mp.sqrt(x) ** 3, 0.1, 9),
    "sigmoid": (FUNCTIONS["sigmoid"], logistic, lambda x: logistic(x) * logistic(-x), -40, 40),
    "sin": (FUNCTIONS["sin"], mp.sin, mp.cos, -50, 50),
    "sinh": (FUNCTIONS["sinh"], mp.sinh, mp.cosh, -8, 8),
    "sqrt": (FUNCTIONS["sqrt"], mp.sqrt, lambda x: 1 / (2 * mp.sqrt(x)), 0.01, 50),
    "square": (FUNCTIONS["square"], lambda x: x * x, lambda x: 2 * x, -3, 3),
    "tan": (FUNCTIONS["tan"], mp.tan, lambda x: 1 + mp.tan(x) ** 2, -1.4, 1.4),
    "tanh": (FUNCTIONS["tanh"], mp.tanh, lambda x: 1 - mp.tanh(x) ** 2, -15, 15),
    "cube": (functions.whole_power(3), lambda x: x**3, lambda x: 3 * x**2, -3, 3),
    "fourth power": (functions.whole_power(4), lambda x: x**4, lambda x: 4 * x**3, -3, 3),
    "inverse square": (functions.whole_power(-2), lambda x: x**-2, lambda x: -2 * x**-3, 0.2, 4),
    "power 2.5": (
        functions.real_power(2.5), lambda x: x ** mp.mpf(2.5), lambda x: mp.mpf(2.5) * x ** mp.mpf(1.5), 1e-3, 9,
    ),
    "power −0.5": (
        functions.real_power(-0.5), lambda x: x ** mp.mpf(-0.5), lambda x: -mp.mpf(0.5) * x ** mp.mpf(-1.5), 0.1, 9,
    ),
    "softplus": (
        functions.softplus(2.0, 200.0), lambda x: mp.log1p(mp.exp(2 * x)) / 2, lambda x: logistic(2 * x), -9, 9,
    ),
    "elu": (
        functions.elu(1.5),
        lambda x: x if x > 0 else mp.mpf(1.5) * mp.expm1(x),
        lambda x: mp.mpf(1) if x > 0 else mp.mpf(1.5) * mp.exp(x),
        -4,
        4,
    ),
    "leaky relu": (
        functions.leaky_relu(0.25), lambda x: x if x > 0 else x / 4, lambda x: mp.mpf(1 if x > 0 else 0.25), -3, 3,
    ),
    "clamp": (
        functions.clamp(-1, 2), lambda x: min(max(x, mp.mpf(-1)), mp.mpf(2)), lambda x: mp.mpf(-1 < x < 2), -4, 4,
    ),
}  # fmt: skip


def boxes(low: float, high: float, count: int = 60) -> Interval:
    """Intervals of all widths, single points among them, and the ends of the range."""
    generator = torch.Generator().manual_seed(0)
    unit = torch.rand(count, 2, generator=generator, dtype=torch.float64)
    lo = low + (high - low) * unit[:, 0]
    width = (high - lo) * unit[:, 1] ** 3
    width[::4] = 0.0
    return Interval(lo, torch.minimum(lo + width, torch.tensor(float(high))))


def outside(inclusion: Interval, exact: Exact, x: Interval) -> int:
    """How many of the points of the intervals, ends among them, have a value outside of the inclusion."""
    wrong = 0
    ends = (end.tolist() for end in (x.lo, x.hi, inclusion.lo, inclusion.hi))
    for lo, hi, low, high in zip(*ends, strict=True):
        for share in (0.0, 0.11, 0.5, 0.83, 1.0):
            point = min(max(lo + share * (hi - lo), lo), hi)
            wrong += not mp.mpf(low) <= exact(mp.mpf(point)) <= mp.mpf(high)
    return wrong


@pytest.mark.parametrize("name", EXACT)
def test_a_function_and_its_derivative_are_inside(name: str) -> None:
    function, value, derivative, low, high = EXACT[name]
    x = boxes(low, high)
    y = function.value(x)
    assert outside(y, value, x) == 0
    slope = function.derivative(x, y)
    slope = Interval(slope.lo.expand_as(x.lo), slope.hi.expand_as(x.hi))
    assert outside(slope, derivative, x) == 0
    thin = Interval(x.lo, x.lo)
    at_points = function.value(thin)
    assert bool((at_points.hi - at_points.lo <= 1e-13 * (1 + at_points.size)).all())


def test_every_function_of_the_table_is_tested() -> None:
    assert set(FUNCTIONS) <= set(EXACT)


@pytest.mark.parametrize("name", ["exp", "log", "sin", "tanh", "sigmoid", "power 2.5"])
def test_values_that_are_not_rounded_outward_are_found_outside(name: str) -> None:
    _, value, _, low, high = EXACT[name]
    rounded = {"power 2.5": lambda x: x**2.5}.get(name) or getattr(torch, name)
    x = boxes(low, high)
    points = Interval(x.lo, x.lo)
    assert outside(Interval(rounded(x.lo), rounded(x.lo)), value, points) > 20


@pytest.mark.parametrize("name", ["sin", "cos", "square", "abs", "cosh"])
def test_an_extremum_inside_is_seen(name: str) -> None:
    function, value, _, _, _ = EXACT[name]
    x = Interval(torch.tensor([-1.0]).double(), torch.tensor([9.0]).double())
    assert outside(function.value(x), value, x) == 0
    ends = function.value(Interval(x.lo, x.lo)), function.value(Interval(x.hi, x.hi))
    assert outside(iv.hull(*ends), value, x) > 0 or name in ("square", "abs", "cosh")
    assert float(function.value(x).lo) <= {"sin": -1, "cos": -1, "square": 0, "abs": 0, "cosh": 1}[name]


def test_sums_and_products_hold_the_rational_results() -> None:
    generator = torch.Generator().manual_seed(1)
    a, b = torch.randn(2, 40, 3, generator=generator, dtype=torch.float64)
    x, y = Interval(a, a + a.abs()), Interval(b - 0.3, b)
    for operation, exact in (
        (iv.add, lambda p, q: p + q),
        (iv.subtract, lambda p, q: p - q),
        (iv.multiply, lambda p, q: p * q),
        (iv.divide, lambda p, q: p / q),
    ):
        found = operation(x, y)
        for index in range(a.numel()):
            low, high = float(found.lo.flatten()[index]), float(found.hi.flatten()[index])
            for p in (x.lo, x.hi):
                for q in (y.lo, y.hi):
                    at = Fraction(float(q.flatten()[index]))
                    value = exact(Fraction(float(p.flatten()[index])), at)
                    assert low == -torch.inf or Fraction(low) <= value
                    assert high == torch.inf or value <= Fraction(high)


@pytest.mark.parametrize("thin", [(True, True), (True, False), (False, True), (False, False)])
def test_products_of_matrices_and_sums_hold_the_rational_results(thin: tuple[bool, bool]) -> None:
    generator = torch.Generator().manual_seed(2)
    a = torch.randn(3, 7, generator=generator, dtype=torch.float64)
    b = torch.randn(7, 2, generator=generator, dtype=torch.float64) * 1e8
    x, y = (Interval(m, m if t else m + m.abs()) for m, t in zip((a, b), thin, strict=True))
    found = iv.matmul(x, y)
    for p in (x.lo, x.hi):
        for q in (y.lo, y.hi):
            for i in range(3):
                for j in range(2):
                    terms = [Fraction(float(p[i, k])) * Fraction(float(q[k, j])) for k in range(7)]
                    assert Fraction(float(found.lo[i, j])) <= sum(terms) <= Fraction(float(found.hi[i, j]))
    summed = iv.total(Interval(b, b), (0,))
    for j in range(2):
        exact = sum(Fraction(float(v)) for v in b[:, j])
        assert Fraction(float(summed.lo[j])) <= exact <= Fraction(float(summed.hi[j]))


def test_a_product_by_midpoints_holds_the_one_by_terms(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = boxes(-1, 1, 12), boxes(-2, 2, 12)
    x, y = a.map(lambda e: e.reshape(3, 4)), b.map(lambda e: e.reshape(4, 3))
    tight = iv.matmul(x, y)
    monkeypatch.setattr(iv, "_MOST_TERMS", 0)
    wide = iv.matmul(x, y)
    assert bool((wide.lo <= tight.lo + 1e-14).all()) and bool((wide.hi >= tight.hi - 1e-14).all())


SKEW = torch.tensor([[0.5, 1.0], [-1.0, 0.5]], dtype=torch.float64)
ZOO = {
    "all activations": nn.Sequential(
        nn.Linear(2, 5), nn.Tanh(), nn.Linear(5, 5), nn.Softplus(), nn.Linear(5, 5), nn.SiLU(), nn.LayerNorm(5),
        nn.GELU(), nn.ELU(), nn.Sigmoid(), nn.Linear(5, 5), nn.Hardtanh(), nn.ReLU6(), nn.LeakyReLU(), nn.Softsign(),
        nn.Mish(), nn.Hardswish(), nn.SELU(), nn.Hardsigmoid(), nn.Linear(5, 2),
    ),
    "softmax and norms": lambda s: torch.softmax(s, -1) + s / (1 + s.norm(dim=-1)[:, None]) + s.logsumexp(-1, True),
    "largest and clamped": lambda s: torch.maximum(s, 0.5 * s.flip(-1)) + s.amax(-1, keepdim=True) + s.clamp(-1, 0.4),
    "einsum": lambda s: torch.einsum("ij,bj->bi", torch.tensor([[1.0, 2.0], [0.5, -1.0]]).double(), s.sin()) @ SKEW,
    "indices": lambda s: s[:, [1, 0]] * s[:, torch.tensor([0, 0])] + torch.roll(s, 1, -1) + s.mean(-1, True),
    "gradient inside": lambda s: -torch.func.grad(lambda x: (torch.cos(x).sum() + (x[:, 0] * x[:, 1]).tanh().sum()))(s),
    "layers of a batch": lambda s: torch.stack([torch.linalg.vector_norm(s, dim=1), torch.var(s, 1)], 1),
    "logarithms": lambda s: torch.logaddexp(s, s.flip(-1)) + torch.log2(1 + s) - torch.exp2(s.erfc()),
    "powers": lambda s: (2.0 + s).pow(1.5) + s**3 - torch.pow(2.0, s) + (2 + s) ** (1 + s) + s.rsqrt(),
}  # fmt: skip


@pytest.mark.parametrize("name", ZOO)
def test_fields_and_their_jacobians_are_inside(name: str) -> None:
    torch.manual_seed(0)
    field = ZOO[name]
    if isinstance(field, nn.Module):
        field = field.double()
    inclusion = Inclusion(lambda t, s: field(s), torch.empty(0).double(), 2)
    lo = 0.1 + 0.8 * torch.rand(16, 2, dtype=torch.float64)
    width = 0.05 * torch.rand(16, 2, dtype=torch.float64)
    found = inclusion(Interval(lo, lo + width))
    slack = 1e-9  # the points are rounded as well, and torch returns x for softplus beyond its threshold
    for _ in range(20):
        points = lo + width * torch.rand(16, 2, dtype=torch.float64)
        value = field(points)
        jacobian = torch.func.vmap(torch.func.jacrev(lambda s: field(s[None])[0]))(points).permute(2, 0, 1)
        slope = found.slopes(2)
        assert bool((found.value.lo - slack <= value).all()) and bool((value <= found.value.hi + slack).all())
        assert bool((slope.lo - slack <= jacobian).all()) and bool((jacobian <= slope.hi + slack).all())
    assert float((found.value.hi - found.value.lo).max()) < 3.0


def test_a_field_that_jumps_has_no_bounded_slope_where_it_jumps() -> None:
    inclusion = Inclusion(lambda t, s: torch.where(s > 0, s, s - 1), torch.empty(0).double(), 1)
    lo = torch.tensor([[-0.2], [0.1], [-0.5]]).double()
    found = inclusion(Interval(lo, lo + 0.3))
    assert found.slopes(1).bounded.flatten().tolist() == [False, True, True]
    assert float(found.value.lo[0]) <= -1.199 and float(found.value.hi[0]) >= 0.099
    for jump in (torch.floor, torch.sign, lambda s: (s > 0).to(s)):
        one = Inclusion(lambda t, s, jump=jump: jump(s) - s, torch.empty(0).double(), 1)(Interval(lo, lo + 0.3))
        assert one.slopes(1).bounded.flatten()[:2].tolist() == [False, True]


@pytest.mark.parametrize("n", [1, 2, 3])
def test_a_jump_is_seen_in_every_coordinate_and_entry(n: int) -> None:
    lo = torch.tensor([[-0.2], [0.1]], dtype=torch.float64).expand(2, n)
    jumps = {
        "as a number": lambda s: (s > 0).to(s) - s,
        "both": lambda s: torch.where((s > 0) & (s < 5), 1.0, 0.0) - s,
        "stacked": lambda s: torch.cat([torch.where(s[:, :1] > 0, 2.0, 0.0), -s[:, 1:]], 1),
        "moved": lambda s: torch.stack([*(s > 0).unbind(-1)], -1).logical_not().to(s) - s,
    }
    for jump in jumps.values():
        found = Inclusion(lambda t, s, jump=jump: jump(s), torch.empty(0).double(), n)(Interval(lo, lo + 0.3))
        slopes = found.slopes(n)
        assert tuple(slopes.shape) == (n, 2, n)
        assert not bool(slopes.bounded[0, 0, 0]) and bool(slopes.bounded[:, 1].all())


def test_a_jump_in_time_has_the_slopes_of_both_sides() -> None:
    inclusion = Inclusion(lambda t, s: torch.where(t > 1, -2 * s, -3 * s), torch.empty(0).double(), 2)
    s = iv.exactly(torch.ones(2, 2).double())
    t = Interval(torch.tensor([[0.5], [1.5]]).double(), torch.tensor([[1.5], [2.0]]).double())
    slope = inclusion(s, t).slopes(2)
    assert [float(x[0, 0, 0]) for x in (slope.lo, slope.hi)] == pytest.approx([-3, -2])
    assert [float(x[0, 1, 0]) for x in (slope.lo, slope.hi)] == pytest.approx([-2, -2])


def test_where_a_function_has_no_value_nothing_is_known() -> None:
    box = Interval(torch.tensor([[-1.0]]).double(), torch.tensor([[1.0]]).double())
    for function in (torch.log, torch.reciprocal, torch.sqrt, torch.rsqrt, lambda s: s**1.5, lambda s: 1 / s**2):
        found = Inclusion(lambda t, s, function=function: function(s), torch.empty(0).double(), 1)(box)
        assert not bool(found.slopes(1).bounded.any())
        assert float(found.slopes(1).hi) == torch.inf, "or 1/s would contract across its pole"


def test_numbers_are_taken_in_double_precision() -> None:
    found = Inclusion(lambda t, s: 0.1 * s + 0.7, torch.empty(0).double(), 1)(iv.exactly(torch.tensor([[1.0]])))
    assert float(found.value.lo) <= 0.1 + 0.7 <= float(found.value.hi)
    assert float(found.value.hi - found.value.lo) < 1e-15


def test_times_are_one_more_interval() -> None:
    inclusion = Inclusion(lambda t, s: torch.sin(t) * s, torch.empty(0).double(), 2)
    s = iv.exactly(torch.ones(3, 2).double())
    t = Interval(torch.tensor([[0.0], [1.0], [3.0]]).double(), torch.tensor([[0.5], [2.0], [3.2]]).double())
    slope = inclusion(s, t).slopes(2)
    assert float(slope.lo[0, 0, 0]) <= 0 and float(slope.hi[0, 0, 0]) >= torch.tensor(0.5).double().sin()
    assert 1.0 <= float(slope.hi[0, 1, 0]) < 1.0 + 1e-15
    assert float(slope.lo[0, 2, 0]) <= torch.tensor(3.2).double().sin() <= 0


def refused(function: Callable[[Tensor, Tensor], Tensor]) -> str:
    with pytest.raises(InputError) as error:
        Inclusion(function, torch.empty(0).double(), 2)
    return str(error.value)


def test_what_has_no_inclusion_is_refused_by_name() -> None:
    assert "lgamma" in refused(lambda t, s: torch.lgamma(s))
    assert "bernoulli" in refused(lambda t, s: nn.functional.dropout(s, 0.5))
    assert "f(t, s)" in refused(lambda t, s: s if float(s[0, 0]) > 0 else -s)
    assert "f(t, s)" in refused(lambda t, s: torch.from_numpy(s.detach().numpy()))
    assert "f(t, s)" in refused(lambda t, s: 1e-6 * torch.from_numpy(s.detach().numpy()) - s)
    assert "round" in refused(lambda t, s: torch.round(s, decimals=2))
    assert "as_strided" in refused(lambda t, s: torch.as_strided(s, (16, 2), (1, 16)))
    assert "f(t, s)" in refused(lambda t, s: s.view(torch.int64).to(s))
    assert "remainder" in refused(lambda t, s: s % 1.0)


def test_a_rule_of_ones_own_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    rule = ScalarFunction(value=functions.rising(torch.digamma), derivative=lambda x, y: iv.everything(x.lo))
    monkeypatch.setitem(rules.RULES, "digamma", lambda a: duals.apply(rule, a))
    found = Inclusion(lambda t, s: torch.digamma(s + 1), torch.empty(0).double(), 2)
    assert "digamma" in found.operations
