"""Diagonal steps: chosen by the exact factor, which the iterates keep in the metric ΛD⁻¹."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from contracting.activations.catalogue import ReLU, Softplus, Tanh
from contracting.errors import PreconditionError
from contracting.flows.splitting import ForwardBackwardFlow, PeacemanRachfordFlow
from contracting.loop.method import Method
from contracting.loop.records import Stop
from contracting.loop.run import solve
from contracting.maps.dense import Dense
from contracting.maps.operator import MonotoneOperator
from contracting.metrics import WeightedL2
from contracting.problem import EquilibriumProblem
from contracting.solvers.diagonal_step import _candidates
from equilibrium import DiagonalStep, DouglasRachford, ForwardBackward, PeacemanRachford
from tests.methods import name
from tests.problems import monotone_weight, planted

METHODS = [kind(step=DiagonalStep()) for kind in (ForwardBackward, PeacemanRachford, DouglasRachford)]


def uneven_weight() -> tuple[Tensor, Tensor]:
    """Neurons whose gains differ a hundredfold, which is not a matter of the metric."""
    W, lam = monotone_weight(8, seed=1, skew=0.3, spread=1.0)
    A = torch.eye(8, dtype=torch.float64) - W
    root = torch.logspace(0, 1, 8, dtype=torch.float64)
    return torch.eye(8, dtype=torch.float64) - root[:, None] * A * root, lam


@pytest.mark.parametrize("activation", [ReLU(), Tanh()], ids=lambda a: type(a).__name__)
@pytest.mark.parametrize("method", METHODS, ids=name)
def test_steps_contract_with_the_predicted_factor_in_the_scaled_metric(method: Method, activation) -> None:
    W, lam = uneven_weight()
    problem, exact = planted(activation, W, lam, batch=8, seed=2)
    iteration = method.bind(problem, Stop().resolved(problem))
    step = iteration.flow.step  # type: ignore[attr-defined]
    assert isinstance(step, Tensor) and iteration.factor is not None and iteration.factor < 1
    metric = WeightedL2(lam / step)
    state, fixed = iteration.init(problem.zeros()), iteration.init(exact)
    for _ in range(30):
        before = metric.norm(state[0] - fixed[0])
        state = iteration.step(state)
        assert (metric.norm(state[0] - fixed[0]) <= iteration.factor * before + 1e-12).all()


@pytest.mark.parametrize("kind", [ForwardBackward, PeacemanRachford])
def test_an_uneven_weight_gains_and_no_weight_loses(kind: type) -> None:
    W, lam = uneven_weight()
    problem, _ = planted(ReLU(), W, lam, batch=4, seed=2)
    stop = Stop(rtol=1e-8, check_every=1)
    plain, diagonal = solve(problem, kind(), stop=stop), solve(problem, kind(step=DiagonalStep()), stop=stop)
    assert 2 * diagonal.steps.max() < plain.steps.max()
    for seed in range(6):
        W, lam = monotone_weight(6, seed=seed, skew=2.0, spread=1.0)
        problem, _ = planted(ReLU(), W, lam, batch=1, seed=seed)
        factors = [m.bind(problem, Stop().resolved(problem)).factor for m in (kind(step=DiagonalStep()), kind())]
        assert factors[0] <= factors[1]


@pytest.mark.parametrize("kind", [ForwardBackwardFlow, PeacemanRachfordFlow])
def test_factors_of_the_candidates_by_another_formula(kind: type) -> None:
    """In the coordinates of ‖·‖_{ΛD⁻¹}, straight from W."""
    W, lam = uneven_weight()
    identity = torch.eye(8, dtype=torch.float64)
    root = lam.sqrt()
    operator = MonotoneOperator((root[:, None] * (identity - W) / root)[None])
    candidates = _candidates(operator, kind)
    assert len(candidates) == 3
    for step, factor in candidates:
        D = torch.as_tensor(step, dtype=torch.float64).expand(8)
        A = D[:, None] * (identity - W)
        T = identity - A if kind is ForwardBackwardFlow else (identity - A) @ torch.linalg.inv(identity + A)
        assert float(WeightedL2(lam / D).operator_norm(T)) == pytest.approx(factor, rel=1e-8)


def test_the_metric_is_no_candidate_and_a_bad_one_would_do_harm() -> None:
    """D = Λ instead of the best: the factor of an ill-scaled metric is much worse."""
    W, lam = monotone_weight(6, seed=3, spread=2.0)
    problem, _ = planted(ReLU(), W, lam, batch=1, seed=1)
    step, factor = DiagonalStep().choose(problem, PeacemanRachfordFlow)
    root = lam.sqrt()
    A = problem.require_operator("test").blocks[0]
    assert factor is not None
    harmful = MonotoneOperator((root[:, None] * A * root)[None]).best_reflected.factor
    assert harmful is not None and 1 - harmful < 0.5 * (1 - factor)
    if isinstance(step, Tensor):
        assert not torch.allclose(step / step[0], lam / lam[0])


def test_refuses_without_a_certificate() -> None:
    problem, _ = planted(ReLU(), torch.zeros(3, 3, dtype=torch.float64), None, batch=1, seed=0)
    with pytest.raises(PreconditionError, match=r"\bSemismoothNewton\(\)"):
        solve(problem, PeacemanRachford(step=DiagonalStep()))


def in_training(W: Tensor, lam: Tensor, activation) -> tuple[EquilibriumProblem, Tensor]:
    """A planted problem cut from the graph of its weight, and its solution."""
    problem, exact = planted(activation, W, lam, batch=32, seed=2)
    learnt = Dense(W.clone().requires_grad_())
    again = EquilibriumProblem(linear=learnt, q=problem.q, activation=activation, metric=problem.metric)
    return again.detach(), exact


def test_uneven_neurons_in_training_take_a_step_each_and_fewer_of_them() -> None:
    problem, exact = in_training(*uneven_weight(), ReLU())
    found = problem.reflected_choice(usual=True)
    one = problem.reflected_choice()
    assert found is not None and isinstance(found.step, Tensor) and one is not None and isinstance(one.step, float)
    ratios = found.step * (1 - problem.linear.to_dense().diagonal())
    assert torch.allclose(ratios, ratios[0].expand(8))
    stop = Stop(rtol=1e-8, check_every=1)
    each, all_alike = (
        solve(problem, PeacemanRachford(step=step), stop=stop) for step in (None, one.step)
    )
    assert torch.allclose(each.z, exact, atol=1e-6) and torch.allclose(all_alike.z, exact, atol=1e-6)
    assert int(each.steps.max()) < 0.5 * int(all_alike.steps.max())
    even = torch.eye(8, dtype=torch.float64) * 0.5  # where there is nothing to balance, both are one number
    balanced = in_training(even, torch.ones(8, dtype=torch.float64), ReLU())[0].reflected_choice(usual=True)
    assert balanced is not None and torch.allclose(torch.as_tensor(balanced.step), torch.tensor(1.88).double())


def test_a_curved_activation_in_training_keeps_one_step_for_all() -> None:
    """Its pre-images are led along by one number, which a step of each neuron is not."""
    problem, exact = in_training(*uneven_weight(), Softplus())
    choice = problem.reflected_choice(usual=True)
    assert choice is not None and isinstance(choice.step, float)
    assert torch.allclose(solve(problem, PeacemanRachford(), stop=Stop(rtol=1e-9)).z, exact, atol=1e-6)


def test_the_adjoint_reflection_with_a_step_per_neuron_is_made_of_the_same_inverse() -> None:
    W, _ = uneven_weight()
    step, identity = torch.rand(8, dtype=torch.float64) + 0.1, torch.eye(8, dtype=torch.float64)
    linear = Dense(W)
    forward, found = linear.reflection(step).to_dense(), linear.adjoint.reflection(step).to_dense()
    expected = 2 * torch.linalg.inv(identity + step[:, None] * (identity - W.mT)) - identity
    assert torch.allclose(found, expected)
    assert not torch.allclose(found, forward.mT, rtol=0.1)  # which it is for a number only
