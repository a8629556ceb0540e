"""Maps less a Gram term, against dense matrices."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch

from contracting.activations.catalogue import ReLU
from contracting.errors import InputError, PreconditionError
from contracting.gradients.implicit import Implicit
from contracting.loop.records import Stop
from contracting.loop.run import solve
from contracting.maps import minus_gram
from contracting.maps.base import LinearMap
from contracting.maps.convolution import CircularConvolution
from contracting.maps.dense import Dense
from contracting.maps.frequencies import over_space
from contracting.maps.minus_gram import MinusGram, Rows
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


def make(seed: int, *, loud: float = 1.0, exact_up_to: int = 0) -> MinusGram:
    """C − TᵀT, and no analysis by the dense matrix."""
    base = convolution(seed)
    return MinusGram(base, Rows(loud * draw(3, base.size, seed=seed + 100) / 4), exact_up_to=exact_up_to)


def euclidean(linear: LinearMap) -> WeightedL2:
    return WeightedL2.identity(linear.size, dtype=torch.float64)


def matrix_of(linear: MinusGram) -> torch.Tensor:
    T = linear.factor.apply(torch.eye(linear.size, dtype=torch.float64)).mT
    return linear.inner.to_dense() - T.mT @ T


@pytest.mark.parametrize("few", [0, 64], ids=["by its products", "by its rows"])
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_apply_adjoint_combination_and_resolvent_are_those_of_the_matrix(
    grid: tuple[int, ...], few: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(minus_gram, "_FEW", few)
    monkeypatch.setattr(minus_gram, "_CHUNK", 2)
    base = convolution(1, grid)
    n = base.size
    linear = MinusGram(base, Rows(draw(3, n, seed=2) / 3))
    W = matrix_of(linear)
    z, identity = draw(6, n, seed=4), torch.eye(n, dtype=torch.float64)

    def same(found: LinearMap, matrix: torch.Tensor) -> None:
        for rows in (z, linear.laid_out(z)):
            assert float((found.apply(rows) - z @ matrix.mT).norm(dim=-1).max()) <= 1e-10
            assert float((found.adjoint.apply(rows) - z @ matrix).norm(dim=-1).max()) <= 1e-10
            assert float((found.affine(rows, 2 * rows) - z @ matrix.mT - 2 * z).norm(dim=-1).max()) <= 1e-10
            out = torch.empty_like(rows)
            assert found.affine(rows, 2 * rows, out=out) is out
            assert float((out - z @ matrix.mT - 2 * z).norm(dim=-1).max()) <= 1e-10
        assert torch.allclose(found.apply(z[0]), z[0] @ matrix.mT, atol=1e-10)
        assert float((found.to_dense() - matrix).abs().max()) <= 1e-10

    same(linear, W)
    assert linear.adjoint.adjoint is linear
    per_channel = over_space(torch.tensor([0.4, 1.3], dtype=torch.float64), grid)
    for step in (0.6, torch.tensor(0.6, dtype=torch.float64), per_channel):
        D = per_channel[:, None] if step is per_channel else 0.6
        for found, matrix in ((linear, W), (linear.adjoint, W.mT)):
            K = torch.linalg.inv(identity + D * (identity - matrix))
            same(found.resolvent(step), K)
            same(found.reflection(step), 2 * K - identity)
            same(found.reflection(step).combined(0.5, 0.5), K)
    again = linear.with_tensors([2 * t for t in linear.tensors()])
    same(again, 2 * base.to_dense() + 4 * (W - base.to_dense()))


def test_a_step_per_position_goes_through_the_scaling() -> None:
    """As in a metric that varies over the image: (I + αΨ⁻¹·ΨM)⁻¹, and nothing else than that step."""
    base = convolution(5)
    n = base.size
    T = Rows(draw(4, n, seed=6) / 3)
    psi = (0.5 * draw(n, seed=7)).exp()
    scaled = Scaled(MinusGram(base, T), psi, torch.ones_like(psi))
    identity = torch.eye(n, dtype=torch.float64)
    M = identity - base.to_dense() + T.matrix.mT @ T.matrix
    z = draw(5, n, seed=8)
    assert float((scaled.apply(z) - z @ (identity - psi[:, None] * M).mT).norm(dim=-1).max()) <= 1e-10
    K = torch.linalg.inv(identity + 0.8 * M)
    assert float((scaled.resolvent(0.8 / psi).apply(z) - z @ K.mT).norm(dim=-1).max()) <= 1e-10
    with pytest.raises(PreconditionError, match=r"\bper channel\b"):
        scaled.resolvent(0.8)
    Kd = torch.linalg.inv(identity + psi[:, None] * M)
    dense = MinusGram(Dense(base.to_dense()), T)  # a base that takes any step gives one for any step
    assert float((dense.resolvent(psi).apply(z) - z @ Kd.mT).norm(dim=-1).max()) <= 1e-10
    assert float((dense.adjoint.adjoint.resolvent(psi).adjoint.apply(z) - z @ Kd).norm(dim=-1).max()) <= 1e-10


def test_no_row_changes_nothing() -> None:
    base = convolution(9)
    linear = MinusGram(base, Rows(torch.zeros(0, base.size, dtype=torch.float64)), exact_up_to=0)
    z = draw(2, base.size, seed=10)
    assert torch.equal(linear.apply(z), base.apply(z))
    assert torch.allclose(linear.resolvent(0.5).apply(z), base.resolvent(0.5).apply(z), atol=1e-14)
    found, known = (of.operator(euclidean(base)).bounds for of in (linear, base))
    assert found.monotonicity == known.monotonicity and found.lipschitz == known.lipschitz


@pytest.mark.parametrize("transpose", [False, True])
def test_bounds_and_factors_are_on_the_safe_side_of_the_matrix(transpose: bool) -> None:
    for seed in range(12):
        linear: LinearMap = make(seed)
        metric = euclidean(linear)
        base = make(seed).inner.operator(metric).bounds
        exact = Dense(linear.to_dense()).operator(metric)
        found = (linear.adjoint if transpose else linear).operator(metric)
        b, e = found.bounds, exact.bounds
        assert base.monotonicity - 1e-12 <= b.monotonicity <= e.monotonicity + 1e-12  # the term costs none
        for name in ("symmetric", "skew", "lipschitz", "gain"):
            assert getattr(b, name) >= getattr(e, name) * (1 - 1e-12)
        assert found.mean == pytest.approx(exact.mean, rel=0.1)
        assert e.lipschitz >= 0.5 * b.lipschitz
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


def test_bounds_are_attained_by_one_row() -> None:
    """On a multiple of the identity."""
    for seed in range(5):
        linear = MinusGram(Dense(0.4 * torch.eye(6, dtype=torch.float64)), Rows(draw(1, 6, seed=seed)), exact_up_to=0)
        found, exact = (of.operator(euclidean(linear)).bounds for of in (linear, Dense(linear.to_dense())))
        for name in ("monotonicity", "symmetric", "lipschitz"):
            assert getattr(found, name) == pytest.approx(getattr(exact, name), abs=1e-11)


def test_a_large_readout_does_not_spoil_the_factor_that_is_proved() -> None:
    """Of the digits per step that the best step gains, at least half are proved; from m and L alone, few."""
    for seed in range(5):
        loud = make(seed, loud=4.0)
        found, exact = (of.operator(euclidean(loud)) for of in (loud, Dense(loud.to_dense())))
        proved, best = found.best_reflected.factor, exact.best_reflected.factor
        assert proved is not None and best is not None
        assert math.log(proved) <= 0.5 * math.log(best)
        m, L = found.bounds.monotonicity, found.bounds.lipschitz
        assert math.log((1 - m / L) / (1 + m / L)) / 2 > 0.15 * math.log(best)


def test_a_base_that_is_not_monotone_is_not_certified() -> None:
    """Negative control."""
    good = make(3)
    bad = MinusGram(good.inner.combined(3.0, 0.0), good.factor, exact_up_to=0)
    assert Dense(bad.to_dense()).operator(euclidean(bad)).bounds.monotonicity < 0
    assert not bad.operator(euclidean(bad)).bounds.strongly_monotone
    assert bad.estimates(euclidean(bad)) is None
    assert good.operator(euclidean(good)).bounds.strongly_monotone and good.estimates(euclidean(good)) is not None
    problem = EquilibriumProblem(linear=bad, q=draw(1, bad.size, seed=4), activation=ReLU(), metric=euclidean(bad))
    with pytest.raises(PreconditionError, match=r"\bSemismoothNewton\(\)"):
        solve(problem, PeacemanRachford())


def test_small_maps_are_analysed_exactly_and_others_in_the_metric_they_are_for() -> None:
    linear = make(4, exact_up_to=24)
    metric = WeightedL2((0.3 * draw(24, seed=5)).exp())
    exact = Dense(linear.to_dense())
    assert linear.block_size == 24 and linear.exactly_analysed(metric)
    assert linear.operator(metric).bounds == exact.operator(metric).bounds
    assert linear.estimates(metric) == exact.estimates(metric)
    assert linear.adjoint.operator(metric.dual()) is linear.operator(metric)
    bounded = make(4)
    assert bounded.block_size == 2
    with pytest.raises(PreconditionError, match=r"\bexact_up_to\b"):
        bounded.blocks(euclidean(bounded))
    for known in (bounded.operator, bounded.estimates):
        with pytest.raises(PreconditionError, match=r"\bScaled\b"):
            known(metric)
        with pytest.raises(PreconditionError, match=r"\bWeightedL2\b"):
            known(WeightedL1(torch.ones(24, dtype=torch.float64)))


def test_a_singular_core_is_refused_with_a_reason() -> None:
    W = torch.diag(torch.tensor([3.0, 0.0, 0.0], dtype=torch.float64))
    e = torch.tensor([[1.0, 0.0, 0.0]], dtype=torch.float64)
    # I + α(I − W) is −1 and I + α(I − W + eeᵀ) is 0 in the first direction for α = 1
    with pytest.raises(PreconditionError, match=r"\bsingular\b"):
        MinusGram(Dense(W), Rows(e)).resolvent(1.0)
    assert MinusGram(Dense(W), Rows(e)).resolvent(0.9) is not None


def test_what_does_not_fit_is_named() -> None:
    base = convolution(0)
    with pytest.raises(InputError, match=r"\bfactor\b"):
        MinusGram(base, draw(2, base.size, seed=0))  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"\bfactor\b"):
        MinusGram(base, Rows(draw(2, base.size, seed=0).float()))


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
    linear: LinearMap = make(5)
    metric = euclidean(linear)
    if varies:
        psi = (0.4 * draw(linear.size, seed=1)).exp()
        linear, metric = Scaled(linear, psi, torch.ones_like(psi)), WeightedL2(1 / psi)
    v = draw(4, linear.size, seed=3)
    z = ReLU()(v)
    problem = EquilibriumProblem(linear=linear, q=v - z @ linear.to_dense().mT, activation=ReLU(), metric=metric)
    solution = solve(problem, method, stop=Stop(rtol=1e-7))  # type: ignore[arg-type]
    assert float((solution.z - z).norm(dim=-1).max()) <= 1e-4
    assert solution.error_bound is not None
    assert (metric.norm(solution.z - z) <= solution.error_bound).all()
    adjoint = problem.adjoint(problem.slopes(z), draw(4, linear.size, seed=4))
    assert (solve(adjoint, method, stop=Stop(rtol=1e-8)).relative_residual <= 2e-8).all()  # type: ignore[arg-type]


def test_gradients_of_first_and_second_order() -> None:
    base = CircularConvolution(monotone_kernel(6, channels=1, sides=(3,)), grid=(4,))
    T = draw(1, 4, seed=7) / 3
    psi = (0.3 * draw(4, seed=8)).exp()
    q = draw(2, 4, seed=9)

    def equilibrium(kernel: torch.Tensor, T: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
        inner = MinusGram(CircularConvolution(kernel, grid=(4,)), Rows(T), exact_up_to=0)
        problem = EquilibriumProblem(
            linear=Scaled(inner, psi, torch.ones_like(psi)), q=q, activation=ReLU(), metric=WeightedL2(1 / psi)
        )
        tight = Stop(rtol=1e-12)
        return Implicit(stop=tight).equilibrium(problem, PeacemanRachford(), tight)

    inputs = tuple(t.clone().requires_grad_() for t in (base.kernel, T, q))
    assert torch.autograd.gradcheck(equilibrium, inputs, atol=1e-6)
    assert torch.autograd.gradgradcheck(equilibrium, inputs, atol=1e-5)


def test_gradients_through_the_resolvent() -> None:
    base = CircularConvolution(monotone_kernel(6, channels=1), grid=(3,) * 2)
    z = draw(2, 9, seed=1)

    def resolved(T: torch.Tensor) -> torch.Tensor:
        return MinusGram(base, Rows(T)).resolvent(0.4).apply(z)

    T = (draw(2, 9, seed=2) / 4).requires_grad_()
    assert torch.autograd.gradcheck(resolved, (T,))
    linear = MinusGram(base, Rows(T))
    (expected,) = torch.autograd.grad((linear.apply(z) * z.flip(0)).sum(), (T,))
    assert torch.allclose(linear.pullback(z, z.flip(0))[1], expected, atol=1e-12)


def test_analyses_are_remembered_and_forgotten_when_a_tensor_changes() -> None:
    linear = make(7)
    metric = euclidean(linear)
    first = linear.operator(metric)
    assert linear.operator(metric) is first and linear.resolvent(0.5) is linear.resolvent(0.5)
    before = linear.resolvent(0.5)
    linear.factor.tensors()[0].mul_(2)
    assert linear.operator(metric) is not first and linear.resolvent(0.5) is not before
    assert linear.operator(metric).bounds.lipschitz > first.bounds.lipschitz


def test_no_matrix_of_columns_is_ever_made() -> None:
    """On an image with a metric per pixel, T has a row per pixel, and an array of rows times n would not fit."""
    grid, rows = (64, 64), []

    class Pixels(Rows):
        """A multiple of the identity, so that r = n."""

        @property
        def rank(self) -> int:
            return len(self.matrix)

        def with_tensors(self, tensors: Sequence[torch.Tensor]) -> Pixels:
            return Pixels(*tensors)

        def apply(self, z: torch.Tensor) -> torch.Tensor:
            rows.append(len(z))
            return self.matrix * z

        def adjoint(self, c: torch.Tensor) -> torch.Tensor:
            return self.matrix * c

        def square_norm(self) -> float:
            return float(self.matrix.square().max())

        def square_sum(self) -> float:
            return float(self.matrix.square().sum())

    base = CircularConvolution(monotone_kernel(2, channels=1, sides=(3, 3)), grid=grid)
    linear = MinusGram(base, Pixels(torch.full((base.size,), 0.5, dtype=torch.float64)))
    assert linear.resolvent_products == base.size
    v = draw(2, base.size, seed=3)
    problem = EquilibriumProblem(
        linear=linear, q=v - linear.apply(ReLU()(v)), activation=ReLU(), metric=euclidean(linear)
    )
    assert not isinstance(Automatic().choose(problem).method, PeacemanRachford)
    solution = solve(problem, Automatic(), stop=Stop(rtol=1e-8))
    assert float((solution.z - ReLU()(v)).norm(dim=-1).max()) <= 1e-5
    assert max(rows) <= len(v)
