"""Maps plus a term of few columns, against dense matrices."""

from __future__ import annotations

import math

import pytest
import torch

from contracting.activations.catalogue import ReLU
from contracting.errors import InputError, PreconditionError
from contracting.gradients.implicit import Implicit
from contracting.loop.records import Stop
from contracting.loop.run import solve
from contracting.maps.base import LinearMap
from contracting.maps.convolution import CircularConvolution
from contracting.maps.dense import Dense
from contracting.maps.frequencies import over_space
from contracting.maps.low_rank import LowRank
from contracting.maps.per_neuron import Scaled
from contracting.metrics import WeightedL1, WeightedL2
from contracting.problem import EquilibriumProblem
from contracting.solvers.automatic import Automatic
from contracting.solvers.newton_krylov import NewtonKrylov
from contracting.solvers.splitting import DouglasRachford, ForwardBackward, PeacemanRachford
from contracting.solvers.tseng import Tseng
from tests.contracting.maps.test_per_neuron import monotone_kernel

GRIDS = [(4, 3), (5, 4), (7,)]


def draw(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def convolution(seed: int, grid: tuple[int, ...] = (4, 3)) -> CircularConvolution:
    return CircularConvolution(monotone_kernel(seed, sides=(3,) * len(grid)), grid=grid)


def make(seed: int, *, skew: float = 0.0, spread: float = 0.0, exact_up_to: int = 0) -> tuple[LowRank, WeightedL2]:
    """C + LRᵀ with Λ^½L = −Λ^−½R where ``skew`` is 0, on a metric per channel, and no analysis by the dense matrix."""
    base = convolution(seed)
    psi = over_space((spread * draw(2, seed=seed + 50)).exp(), base.grid)
    kernel = base.combined(-1.0, 1.0).kernel * psi.reshape(2, -1)[:, 0, None, None, None]  # Ψ(I − C)
    base = CircularConvolution(kernel, grid=base.grid).combined(-1.0, 1.0)
    R = draw(base.size, 3, seed=seed + 100) / 4
    L = -psi[:, None] * (R + skew * draw(base.size, 3, seed=seed + 200) / 4)
    return LowRank(base, L, R, exact_up_to=exact_up_to), WeightedL2(1 / psi)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_apply_adjoint_combination_and_resolvent_are_those_of_the_matrix(grid: tuple[int, ...]) -> None:
    base = convolution(1, grid)
    n = base.size
    linear = LowRank(base, draw(n, 3, seed=2) / 5, draw(n, 3, seed=3) / 5)
    W = base.to_dense() + linear.left @ linear.right.mT
    z, identity = draw(6, n, seed=4), torch.eye(n, dtype=torch.float64)

    def same(found: LinearMap, matrix: torch.Tensor) -> None:
        for rows in (z, linear.laid_out(z)):
            assert float((found.apply(rows) - z @ matrix.mT).norm(dim=-1).max()) <= 1e-10
            assert float((found.adjoint.apply(rows) - z @ matrix).norm(dim=-1).max()) <= 1e-10
            assert float((found.affine(rows, 2 * rows) - z @ matrix.mT - 2 * z).norm(dim=-1).max()) <= 1e-10
            out = torch.empty_like(rows)
            assert found.affine(rows, 2 * rows, out=out) is out
            assert float((out - z @ matrix.mT - 2 * z).norm(dim=-1).max()) <= 1e-10
        assert float((found.to_dense() - matrix).abs().max()) <= 1e-10

    same(linear, W)
    assert linear.adjoint.adjoint is linear
    same(linear.combined(0.7, -0.2), 0.7 * W - 0.2 * identity)
    per_channel = over_space(torch.tensor([0.4, 1.3], dtype=torch.float64), grid)
    for step in (0.6, torch.tensor(0.6, dtype=torch.float64), per_channel):
        D = per_channel[:, None] if step is per_channel else 0.6
        for found, matrix in ((linear, W), (linear.adjoint, W.mT)):
            K = torch.linalg.inv(identity + D * (identity - matrix))
            same(found.resolvent(step), K)
            same(found.reflection(step), 2 * K - identity)
        again = torch.linalg.inv(identity + 0.3 * (identity - linear.resolvent(step).to_dense()))
        same(linear.resolvent(step).resolvent(0.3), again)  # it is a map of the same kind
    same(linear.with_tensors([2 * t for t in linear.tensors()]), 2 * base.to_dense() + 4 * (W - base.to_dense()))


def test_a_step_per_position_goes_through_the_scaling() -> None:
    """As in a metric that varies over the image: (I + αΨ⁻¹·ΨM)⁻¹, and nothing else than that step."""
    base = convolution(5)
    n = base.size
    R = draw(n, 4, seed=6) / 3
    psi = (0.5 * draw(n, seed=7)).exp()
    scaled = Scaled(LowRank(base, -R, R), psi, torch.ones_like(psi))
    identity = torch.eye(n, dtype=torch.float64)
    A = psi[:, None] * (identity - base.to_dense() + R @ R.mT)
    z = draw(5, n, seed=8)
    assert float((scaled.apply(z) - z @ (identity - A).mT).norm(dim=-1).max()) <= 1e-10
    K = torch.linalg.inv(identity + (0.8 / psi)[:, None] * A)
    assert float((scaled.resolvent(0.8 / psi).apply(z) - z @ K.mT).norm(dim=-1).max()) <= 1e-10
    with pytest.raises(PreconditionError, match="one per channel"):
        scaled.resolvent(0.8)
    Kd = torch.linalg.inv(identity + psi[:, None] * (identity - base.to_dense() + R @ R.mT))
    dense = LowRank(Dense(base.to_dense()), -R, R)  # a base that takes any step gives one for any step
    assert float((dense.resolvent(psi).apply(z) - z @ Kd.mT).norm(dim=-1).max()) <= 1e-10
    assert float((dense.adjoint.adjoint.resolvent(psi).adjoint.apply(z) - z @ Kd).norm(dim=-1).max()) <= 1e-10


def test_no_column_changes_nothing() -> None:
    base = convolution(9)
    nothing = torch.zeros(base.size, 0, dtype=torch.float64)
    linear = LowRank(base, nothing, nothing, exact_up_to=0)
    metric = WeightedL2.identity(base.size, dtype=torch.float64)
    z = draw(2, base.size, seed=10)
    assert torch.equal(linear.apply(z), base.apply(z))
    assert torch.allclose(linear.resolvent(0.5).apply(z), base.resolvent(0.5).apply(z), atol=1e-14)
    found, known = linear.operator(metric).bounds, base.operator(metric).bounds
    assert found.monotonicity == known.monotonicity and found.lipschitz == known.lipschitz


@pytest.mark.parametrize("transpose", [False, True])
@pytest.mark.parametrize("skew", [0.0, 1e-9, 0.3])
def test_bounds_and_factors_are_on_the_safe_side_of_the_matrix(skew: float, transpose: bool) -> None:
    for seed in range(12):
        linear, metric = make(seed, skew=skew, spread=0.7)
        if transpose:
            linear, metric = linear.adjoint, metric.dual()  # type: ignore[assignment]
        found, exact = linear.operator(metric), Dense(linear.to_dense()).operator(metric)
        base = linear.base.operator(metric).bounds
        b, e = found.bounds, exact.bounds
        assert b.monotonicity <= e.monotonicity + 1e-12
        for name in ("symmetric", "skew", "lipschitz", "gain"):
            assert getattr(b, name) >= getattr(e, name) * (1 - 1e-12)
        assert found.mean == pytest.approx(exact.mean, rel=0.1)
        if skew < 0.1:  # a positive semidefinite term costs no monotonicity
            assert b.monotonicity >= base.monotonicity - 1e-12
            assert e.lipschitz >= 0.5 * b.lipschitz
        if not b.strongly_monotone:
            continue
        for step in (0.01, 0.05, 0.2, 0.4, 2.0):
            for factor in ("forward_factor", "reflected_factor", "euler_factor", "tseng_factor"):
                assert getattr(found, factor)(step) >= getattr(exact, factor)(step) - 1e-12
        for choice, factor in (
            (found.best_forward, exact.forward_factor),
            (found.best_reflected, exact.reflected_factor),
            (found.usual_reflected, exact.reflected_factor),
            (found.best_euler, exact.euler_factor),
            (found.best_tseng, exact.tseng_factor),
        ):
            assert choice.factor is not None and factor(float(choice.step)) <= choice.factor + 1e-12 < 1 + 1e-12
        estimates = linear.estimates(metric)
        assert estimates is not None and estimates.mean == pytest.approx(exact.mean, rel=0.1)


def test_bounds_are_attained_by_one_column() -> None:
    """On a multiple of the identity, one column gives the symmetric part exactly these extreme eigenvalues."""
    metric = WeightedL2((0.5 * draw(6, seed=0)).exp())
    base = Dense(0.4 * torch.eye(6, dtype=torch.float64))
    for seed in range(5):
        linear = LowRank(base, 7 * draw(6, 1, seed=seed + 1), draw(6, 1, seed=seed + 9) / 5, exact_up_to=0)
        found, exact = linear.operator(metric).bounds, Dense(linear.to_dense()).operator(metric).bounds
        assert found.monotonicity == pytest.approx(exact.monotonicity, abs=1e-11)
        assert found.symmetric == pytest.approx(exact.symmetric, abs=1e-11)


def test_a_large_readout_does_not_spoil_the_factor_that_is_proved() -> None:
    """Of the digits per step that the best step gains, at least half are proved; from m and L alone, few."""
    for seed in range(5):
        linear, metric = make(seed, spread=0.7)
        loud = LowRank(linear.base, 4 * linear.left, 4 * linear.right, exact_up_to=0)
        found, exact = loud.operator(metric), Dense(loud.to_dense()).operator(metric)
        proved, best = found.best_reflected.factor, exact.best_reflected.factor
        assert proved is not None and best is not None
        assert math.log(proved) <= 0.5 * math.log(best)
        m, L = found.bounds.monotonicity, found.bounds.lipschitz
        assert math.log((1 - m / L) / (1 + m / L)) / 2 > 0.15 * math.log(best)


def test_a_term_that_destroys_monotonicity_is_not_certified() -> None:
    """Negative control: the same columns with the other sign."""
    linear, metric = make(3)
    R = 4 * linear.right
    bad = LowRank(linear.base, R, R, exact_up_to=0)
    assert Dense(bad.to_dense()).operator(metric).bounds.monotonicity < 0
    assert not bad.operator(metric).bounds.strongly_monotone
    assert bad.estimates(metric) is None
    good = LowRank(linear.base, -R, R, exact_up_to=0)
    assert good.operator(metric).bounds.strongly_monotone and good.estimates(metric) is not None
    q = draw(1, bad.size, seed=4)
    with pytest.raises(PreconditionError, match="not strongly monotone"):
        solve(EquilibriumProblem(linear=bad, q=q, activation=ReLU(), metric=metric), PeacemanRachford())


def test_small_maps_are_analysed_exactly() -> None:
    linear, metric = make(4, skew=0.5, exact_up_to=24)
    exact = Dense(linear.to_dense())
    assert linear.block_size == 24 and linear.exactly_analysed(metric)
    assert linear.operator(metric).bounds == exact.operator(metric).bounds
    assert linear.estimates(metric) == exact.estimates(metric)
    assert linear.adjoint.operator(metric.dual()) is linear.operator(metric)
    bounded, _ = make(4, skew=0.5)
    assert bounded.block_size == 2
    with pytest.raises(PreconditionError, match="exact_up_to"):
        bounded.blocks(metric)


def test_a_singular_core_is_refused_with_a_reason() -> None:
    zero = Dense(torch.zeros(3, 3, dtype=torch.float64))
    e = torch.tensor([[1.0], [0.0], [0.0]], dtype=torch.float64)
    # I + (I − W) = 2I − 2eeᵀ
    with pytest.raises(PreconditionError, match=r"singular for step = 1.0.*Woodbury.*L = −R"):
        LowRank(zero, 2 * e, e).resolvent(1.0)
    x = draw(3, 1, seed=0)
    almost = LowRank(zero, 2 * x / x.norm(), x / x.norm())  # singular up to rounding, which no pivot shows
    with pytest.raises(PreconditionError, match="singular"):
        almost.resolvent(1.0)
    assert LowRank(zero, 2 * e, e).resolvent(0.9) is not None


def test_shapes_that_do_not_fit_are_named() -> None:
    base = convolution(0)
    good = draw(base.size, 2, seed=0)
    with pytest.raises(InputError, match=r"left must have shape \(24, r\)"):
        LowRank(base, good.mT, good)
    with pytest.raises(InputError, match=r"right must have shape \(24, r\)"):
        LowRank(base, good, good[0])
    with pytest.raises(InputError, match="as many columns, got 2 and 1"):
        LowRank(base, good, good[:, :1])
    with pytest.raises(InputError, match="left"):
        LowRank(base, good.float(), good)
    with pytest.raises(PreconditionError, match="WeightedL2"):
        LowRank(base, good, good, exact_up_to=0).operator(WeightedL1(torch.ones(24, dtype=torch.float64)))


METHODS = (
    PeacemanRachford(),
    DouglasRachford(),
    ForwardBackward(),
    Tseng(),
    NewtonKrylov(),
    Automatic(),
)


@pytest.mark.parametrize("method", METHODS, ids=lambda m: type(m).__name__)
@pytest.mark.parametrize("varies", [False, True])
def test_every_method_solves_from_bounds_alone(method: object, varies: bool) -> None:
    linear: LinearMap
    linear, metric = make(5, spread=0.5)
    if varies:
        psi = (0.4 * draw(linear.size, seed=1)).exp()
        base, R = convolution(5), draw(24, 3, seed=2) / 3
        linear, metric = Scaled(LowRank(base, -R, R, exact_up_to=0), psi, torch.ones_like(psi)), WeightedL2(1 / psi)
    v = draw(4, linear.size, seed=3)
    z = ReLU()(v)
    problem = EquilibriumProblem(linear=linear, q=v - z @ linear.to_dense().mT, activation=ReLU(), metric=metric)
    solution = solve(problem, method, stop=Stop(rtol=1e-7))  # type: ignore[arg-type]
    assert float((solution.z - z).norm(dim=-1).max()) <= 1e-4
    assert solution.error_bound is not None
    assert (metric.norm(solution.z - z) <= solution.error_bound).all()
    adjoint = problem.adjoint(problem.slopes(z), draw(4, linear.size, seed=4))
    assert (solve(adjoint, method, stop=Stop(rtol=1e-8)).relative_residual <= 2e-8).all()  # type: ignore[arg-type]


@pytest.mark.parametrize("exact_up_to", [0, 300])
def test_gradients_of_first_and_second_order(exact_up_to: int) -> None:
    base = CircularConvolution(monotone_kernel(6, channels=1, sides=(3,)), grid=(4,))
    R = draw(4, 1, seed=7) / 3
    psi = (0.3 * draw(4, seed=8)).exp()
    q = draw(2, 4, seed=9)

    def equilibrium(kernel: torch.Tensor, R: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
        inner = LowRank(CircularConvolution(kernel, grid=(4,)), -R, R, exact_up_to=exact_up_to)
        problem = EquilibriumProblem(
            linear=Scaled(inner, psi, torch.ones_like(psi)), q=q, activation=ReLU(), metric=WeightedL2(1 / psi)
        )
        tight = Stop(rtol=1e-12)
        return Implicit(stop=tight).equilibrium(problem, PeacemanRachford(), tight)

    inputs = tuple(t.clone().requires_grad_() for t in (base.kernel, R, q))
    assert torch.autograd.gradcheck(equilibrium, inputs, atol=1e-6)
    assert torch.autograd.gradgradcheck(equilibrium, inputs, atol=1e-5)


def test_gradients_through_the_resolvent() -> None:
    base = CircularConvolution(monotone_kernel(6, channels=1), grid=(3,) * 2)
    z = draw(2, 9, seed=1)

    def resolved(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        return LowRank(base, left, right).resolvent(0.4).apply(z)

    inputs = tuple((draw(9, 2, seed=s) / 4).requires_grad_() for s in (2, 3))
    assert torch.autograd.gradcheck(resolved, inputs)
    linear = LowRank(base, *inputs)
    expected = torch.autograd.grad((linear.apply(z) * z.flip(0)).sum(), inputs)
    for found, gradient in zip(linear.pullback(z, z.flip(0))[1:], expected, strict=True):
        assert torch.allclose(found, gradient, atol=1e-12)


def test_analyses_are_remembered_and_forgotten_when_a_tensor_changes() -> None:
    linear, metric = make(7)
    first = linear.operator(metric)
    assert linear.operator(metric) is first and linear.resolvent(0.5) is linear.resolvent(0.5)
    before = linear.resolvent(0.5)
    linear.left.mul_(2)
    linear.right.mul_(2)
    assert linear.operator(metric) is not first and linear.resolvent(0.5) is not before
    assert linear.operator(metric).bounds.lipschitz > first.bounds.lipschitz


def test_single_precision_keeps_what_the_term_is_worth() -> None:
    """In float32 the two factors match to rounding only; monotonicity then suffers by the square of that."""
    linear, metric = make(8, spread=1.0)
    single = linear.to(torch.float32)
    assert isinstance(single, LowRank) and single.exact_up_to == 0
    found, exact = single.operator(metric).bounds, linear.operator(metric).bounds
    assert found.monotonicity == pytest.approx(exact.monotonicity, rel=1e-5)
