"""Weights with a metric of their own for every neuron, against dense matrices."""

from __future__ import annotations

import pytest
import torch

from contracting.activations.catalogue import LeakyReLU, ReLU, Tanh
from contracting.errors import InputError, PreconditionError
from contracting.flows.splitting import ForwardBackwardFlow, PeacemanRachfordFlow
from contracting.loop.records import Stop
from contracting.loop.run import solve
from contracting.maps.base import LinearMap
from contracting.maps.convolution import CircularConvolution
from contracting.maps.dense import Dense
from contracting.maps.frequencies import centred_sum, gram, over_space, transposed
from contracting.maps.per_neuron import Scaled
from contracting.metrics import WeightedL2
from contracting.problem import EquilibriumProblem
from contracting.solvers.diagonal_step import DiagonalStep
from contracting.solvers.splitting import DouglasRachford, ForwardBackward, PeacemanRachford
from contracting.solvers.tseng import Tseng

GRID = (4, 3)


def monotone_kernel(
    seed: int, *, channels: int = 2, sides: tuple[int, ...] = (3, 3), skew: float = 1.0
) -> torch.Tensor:
    """V with I − V = 0.3 I + AᵀA + skew: monotone with m ≥ 0.3."""
    generator = torch.Generator().manual_seed(seed)
    A, B = (torch.randn(channels, channels, *sides, generator=generator, dtype=torch.float64) / 3 for _ in range(2))
    identity = 0.7 * torch.eye(channels, dtype=torch.float64).reshape(channels, channels, *[1] * len(sides))
    return centred_sum([identity, -gram(A), skew * B, -skew * transposed(B)])


def make(seed: int = 0, spread: float = 1.0) -> tuple[Scaled, WeightedL2]:
    inner = CircularConvolution(monotone_kernel(seed), grid=GRID)
    generator = torch.Generator().manual_seed(seed + 1)
    psi = torch.exp(spread * (2 * torch.rand(inner.size, generator=generator, dtype=torch.float64) - 1))
    return Scaled(inner, psi, torch.ones_like(psi)), WeightedL2(1 / psi)


def test_apply_adjoint_and_resolvent_are_those_of_the_matrix() -> None:
    scaled, metric = make()
    n = scaled.size
    identity = torch.eye(n, dtype=torch.float64)
    W = identity - scaled.left[:, None] * (identity - scaled.inner.to_dense())
    z = torch.randn(5, n, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    assert torch.allclose(scaled.to_dense(), W, atol=1e-12)
    assert float((scaled.apply(z) - z @ W.mT).norm(dim=-1).max()) <= 1e-10
    assert float((scaled.adjoint.apply(z) - z @ W).norm(dim=-1).max()) <= 1e-10
    per_channel = over_space(torch.tensor([0.4, 1.3], dtype=torch.float64), GRID)
    for step in (0.7 * metric.weights, per_channel * metric.weights):
        for linear, matrix in ((scaled, W), (scaled.adjoint, W.mT)):
            K = torch.linalg.inv(identity + step[:, None] * (identity - matrix))
            assert float((linear.resolvent(step).apply(z) - z @ K.mT).norm(dim=-1).max()) <= 1e-10
            assert float((linear.resolvent(step).adjoint.apply(z) - z @ K).norm(dim=-1).max()) <= 1e-10


@pytest.mark.parametrize("transpose", [False, True])
def test_bounds_hold_and_factors_per_neuron_are_exact(transpose: bool) -> None:
    for seed in range(20):
        scaled, metric = make(seed)
        linear: LinearMap = scaled
        if transpose:
            linear, metric = scaled.adjoint, metric.dual()  # type: ignore[assignment]
        found, exact = linear.operator(metric), Dense(linear.to_dense()).operator(metric)
        b, e = found.bounds, exact.bounds
        assert 0 < b.monotonicity <= e.monotonicity * (1 + 1e-9)
        for name in ("symmetric", "skew", "lipschitz", "gain"):
            assert getattr(b, name) >= getattr(e, name) * (1 - 1e-9)
        for step in (0.05, 0.4, 2.0):
            for factor in ("forward_factor", "reflected_factor", "euler_factor", "tseng_factor"):
                assert getattr(found, factor)(step) >= getattr(exact, factor)(step) - 1e-9
        assert (
            found.euler_factor(float(found.best_euler.step))
            <= min(found.euler_factor(h) for h in torch.linspace(0.01, 1, 100).tolist()) + 1e-9
        )
        A = torch.eye(linear.size, dtype=torch.float64) - linear.to_dense()
        for choice, reflect in ((found.best_forward, False), (found.best_reflected, True)):
            step = choice.step
            assert isinstance(step, torch.Tensor) and choice.factor is not None
            root = (metric.weights / step).sqrt()  # the metric ΛD⁻¹
            identity = torch.eye(linear.size, dtype=torch.float64)
            T = identity - step[:, None] * A
            if reflect:
                T = T @ torch.linalg.inv(identity + step[:, None] * A)
            assert float(torch.linalg.matrix_norm(root[:, None] * T / root, 2)) == pytest.approx(
                choice.factor, abs=1e-8
            )


@pytest.mark.parametrize("transpose", [False, True])
def test_published_factors_of_tseng_hold_for_the_dense_matrix(transpose: bool) -> None:
    """For σ = identity Tseng's step is linear, and the norm of its matrix is at most the factor: in Λ, or ΛD⁻¹."""
    for seed in range(10):
        scaled, metric = make(seed)
        linear: LinearMap = scaled
        if transpose:
            linear, metric = scaled.adjoint, metric.dual()  # type: ignore[assignment]
        operator, identity = linear.operator(metric), torch.eye(linear.size, dtype=torch.float64)
        exact = Dense(linear.to_dense()).operator(metric)
        A = metric.whiten(identity - linear.to_dense())
        sweep = [t / operator.bounds.lipschitz for t in torch.linspace(0.02, 0.98, 49).tolist()]
        best = operator.best_tseng
        assert isinstance(best.step, torch.Tensor) and best.factor is not None and best.factor < 1
        root, DA = (metric.weights / best.step).sqrt(), best.step[:, None] * (identity - linear.to_dense())
        own = float(torch.linalg.matrix_norm(root[:, None] * (identity - DA + DA @ DA) / root, 2))
        assert own <= best.factor * (1 + 1e-12)
        for step in sweep:
            factor = operator.tseng_factor(step)
            middle = identity - step * A
            norm = float(torch.linalg.matrix_norm(middle - step * A @ (middle - identity), 2))
            assert norm <= factor * (1 + 1e-12) and factor >= exact.tseng_factor(step) - 1e-12
            assert best.factor <= factor + 1e-4
        assert operator.tseng_factor(1 / operator.bounds.lipschitz) == 1


def test_tseng_solves_while_weights_change() -> None:
    """Its step is then estimated from the map inside, and has to stand for one step per neuron."""
    base = CircularConvolution(monotone_kernel(3), grid=(4, 3))
    psi = torch.linspace(-2, 3, base.size, dtype=torch.float64).exp().requires_grad_()
    scaled, v = Scaled(base, psi, torch.ones_like(psi)), torch.linspace(-3, 3, base.size, dtype=torch.float64)[None]
    with torch.no_grad():
        q = v - scaled.apply(ReLU()(v))
    problem = EquilibriumProblem(linear=scaled, q=q, activation=ReLU(), metric=WeightedL2(1 / psi.detach()))
    solution = solve(problem.detach(), Tseng(), stop=Stop(rtol=1e-9))
    assert problem.detach().linear.changing
    assert float((solution.z - ReLU()(v)).norm()) <= 1e-6


@pytest.mark.parametrize("kind", [ForwardBackwardFlow, PeacemanRachfordFlow])
def test_the_factor_of_a_diagonal_step_is_that_of_the_matrix(
    kind: type[ForwardBackwardFlow] | type[PeacemanRachfordFlow],
) -> None:
    """Also where the map inside is dense, so that its matrix M could be taken for Ã."""
    for seed in range(5):
        scaled, metric = make(seed)
        scaled = Scaled(Dense(scaled.inner.to_dense()), scaled.left, scaled.right)
        q = torch.zeros(1, scaled.size, dtype=torch.float64)
        problem = EquilibriumProblem(linear=scaled, q=q, activation=ReLU(), metric=metric)
        step, factor = DiagonalStep().choose(problem, kind)
        identity = torch.eye(scaled.size, dtype=torch.float64)
        DA = torch.as_tensor(step)[:, None] * (identity - scaled.to_dense())
        T = identity - DA if kind is ForwardBackwardFlow else (identity - DA) @ torch.linalg.inv(identity + DA)
        own = WeightedL2(metric.weights / step)
        assert factor == pytest.approx(float(own.operator_norm(T)), abs=1e-8)


@pytest.mark.parametrize("activation", [ReLU(), Tanh(), LeakyReLU(negative_slope=0.3)], ids=lambda a: type(a).__name__)
@pytest.mark.parametrize(
    "method", [PeacemanRachford(), DouglasRachford(), ForwardBackward()], ids=lambda m: type(m).__name__
)
def test_automatic_steps_solve_as_fast_as_without_the_scaling(method: object, activation: object) -> None:
    scaled, metric = make(5, spread=2.0)
    v = torch.randn(3, scaled.size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    z = activation(v)  # type: ignore[operator]
    problem = EquilibriumProblem(linear=scaled, q=v - scaled.apply(z), activation=activation, metric=metric)  # type: ignore[arg-type]
    solution = solve(problem, method, stop=Stop(rtol=1e-8))  # type: ignore[arg-type]
    assert float((solution.z - z).norm(dim=-1).max()) <= 1e-5
    assert solution.error_bound is not None
    assert (metric.norm(solution.z - z) <= solution.error_bound).all()
    adjoint = problem.adjoint(problem.slopes(z), torch.randn_like(z))
    assert (solve(adjoint, method, stop=Stop(rtol=1e-8)).relative_residual <= 2e-8).all()  # type: ignore[arg-type]


def test_the_flows_contract_as_said_in_their_own_metric() -> None:
    scaled, metric = make(6)
    q = torch.randn(2, scaled.size, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    problem = EquilibriumProblem(linear=scaled, q=q, activation=Tanh(), metric=metric)
    operator = scaled.operator(metric)
    for flow, choice in (
        (ForwardBackwardFlow(), operator.best_forward),
        (PeacemanRachfordFlow(), operator.best_reflected),
    ):
        bound = flow.bind(problem)
        assert isinstance(choice.step, torch.Tensor) and choice.factor is not None
        own = WeightedL2(metric.weights / choice.step)
        s, t = (
            torch.randn(2, scaled.size, generator=torch.Generator().manual_seed(k), dtype=torch.float64) for k in (3, 4)
        )
        assert (own.norm(bound.map(s) - bound.map(t)) <= choice.factor * own.norm(s - t) * (1 + 1e-9)).all()


def test_another_input_keeps_what_is_known_of_the_step() -> None:
    scaled, metric = make(6)
    q = torch.randn(2, scaled.size, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    problem = EquilibriumProblem(linear=scaled, q=q, activation=Tanh(), metric=metric)
    for flow in (ForwardBackwardFlow(), PeacemanRachfordFlow()):
        bound = flow.bind(problem)
        moved = bound.with_input(q + 1)
        assert moved.prediction is bound.prediction and bound.prediction.factor is not None
        assert moved.step is bound.step and torch.equal(moved.problem.q, q + 1)


def test_what_does_not_fit_is_refused_with_a_remedy() -> None:
    scaled, metric = make()
    for bad in (0.0, -1.0, float("nan")):
        spoilt = torch.ones_like(scaled.left)
        spoilt[1] = bad
        with pytest.raises(InputError, match=r"\bleft\b"):
            Scaled(scaled.inner, spoilt, scaled.right)
        with pytest.raises(InputError, match=r"\bright\b"):
            Scaled(scaled.inner, scaled.left, spoilt.requires_grad_())
    with pytest.raises(PreconditionError, match=r"\boperator\(metric\)"):
        scaled.blocks(metric)
    with pytest.raises(PreconditionError, match=r"\bWeightedL2\b"):
        scaled.operator(WeightedL2.identity(scaled.size, dtype=torch.float64))
    with pytest.raises(PreconditionError, match=r"\bForwardBackward\b"):
        scaled.resolvent(0.5)
