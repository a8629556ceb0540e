"""The study measures what it says: solved to tolerance, within its own certified bounds, at its predicted rate."""

from __future__ import annotations

import inspect
import json
from dataclasses import dataclass, replace

import pytest
import torch

import contracting.integrators
import equilibrium
from contracting.errors import InputError
from contracting.integrators import DormandPrince, ExplicitEuler
from contracting.loop.method import Family, Iteration, Method
from contracting.loop.records import Stop
from contracting.solvers.catalogue import ROW_LIMITS, default_solvers
from equilibrium import LBEN, EquilibriumLayer, ForwardBackward, PeacemanRachford, SemismoothNewton, Unconstrained
from equilibrium.experiments.compare_solvers.study import TOLERANCES, compare
from equilibrium.files import plain

SOLVERS = {
    name: default_solvers()[name]
    for name in (
        "PeacemanRachford",
        "ForwardBackward",
        "DouglasRachford-1.8",
        "SemismoothNewton",
        "ExplicitEuler",
        "Heun",
        "DormandPrince",
        "BackwardEuler",
        "RK4/PeacemanRachford",
    )
}


@pytest.fixture(scope="module")
def layer():
    torch.manual_seed(1)
    return LBEN(6, 10, 3, lipschitz=1.0, dtype=torch.float64)


@pytest.fixture(scope="module")
def inputs():
    return 3 * torch.randn(12, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


@pytest.fixture(scope="module")
def comparison(layer, inputs):
    return compare(layer, inputs, SOLVERS, repeats=1)


@dataclass(frozen=True, kw_only=True)
class Idle(Method):
    """A solver that does nothing and claims a fine rate."""

    family = Family.SPLITTING

    def bind(self, problem, stop):
        return IdleIteration()


class IdleIteration(Iteration):
    factor = 0.1

    def init(self, z0):
        return (z0,)

    def step(self, state):
        return state

    def read(self, state):
        return state[0]


def test_every_method_of_the_library_takes_part():
    solvers = default_solvers()
    public = {
        value
        for module in (equilibrium, contracting.integrators)
        for value in vars(module).values()
        if inspect.isclass(value) and issubclass(value, Method) and not inspect.isabstract(value)
    }
    assert public <= {type(method) for method in solvers.values()}
    assert len({repr(method) for method in solvers.values()}) == len(solvers)
    assert {method.family for method in solvers.values()} == set(Family)
    assert set(ROW_LIMITS) <= set(solvers)


def test_every_cell_is_solved_within_its_own_certificate(comparison):
    assert len(comparison.measurements) == len(SOLVERS) * len(TOLERANCES)
    assert comparison.reference.relative_residual < 1e-13
    for m in comparison.measurements:
        assert m.converged and m.rows == 12 and m.status == {"CONVERGED": 12}
        assert m.relative_residual <= m.tolerance * 1.01
        assert m.distance <= m.error_bound + comparison.reference.error_bound
        assert m.map_evals >= m.steps_max and m.seconds > 0
    for name in SOLVERS:
        distances = [m.distance for m in comparison.of(name)]
        assert distances[-1] < 1e-9
        assert distances == sorted(distances, reverse=True)


def test_no_step_is_slower_than_predicted(comparison):
    predicted = [record for record in comparison.solvers if record.factor is not None]
    assert len(predicted) == 6
    for record in predicted:
        assert 0 < record.measured_factor <= record.factor < 1


def test_measured_factor_is_that_of_the_slowest_row(layer, inputs):
    solution = layer.solve(inputs, ForwardBackward(), stop=Stop(rtol=1e-6, check_every=1))
    slowest = inputs[solution.steps.argmax()][None]
    # to 1e-6: the last residuals are then far above rounding
    together, alone = (
        compare(layer, some, {"ForwardBackward": ForwardBackward()}, (1e-6,), repeats=1).solver("ForwardBackward")
        for some in (inputs, slowest)
    )
    assert together.measured_factor == pytest.approx(alone.measured_factor, rel=1e-6)


def test_curves_end_where_the_measurements_do(comparison):
    for curve in comparison.curves:
        last = comparison.of(curve.solver)[-1]
        assert curve.steps[0] == 0 and curve.steps[-1] == last.steps_max
        assert list(curve.seconds) == sorted(curve.seconds)
        assert curve.worst[-1] <= 1.01e-10


def test_json_says_everything(comparison):
    said = json.loads(json.dumps(plain(comparison), allow_nan=False))
    assert {name: len(said[name]) for name in ("solvers", "measurements", "curves")} == {
        name: len(getattr(comparison, name)) for name in ("solvers", "measurements", "curves")
    }
    first = comparison.measurements[0]
    assert said["measurements"][0]["distance"] == first.distance and said["solvers"][0]["name"] == first.solver


def test_refusals_are_recorded_with_their_reason(inputs):
    wild = EquilibriumLayer(Unconstrained(6, 10, 3, dtype=torch.float64))
    solvers = {"PR": PeacemanRachford(), "FB": ForwardBackward(step=0.5), "Newton": SemismoothNewton()}
    comparison = compare(wild, inputs, solvers, (1e-6,), repeats=1)
    assert comparison.bounds is None and comparison.reference.error_bound is None
    assert "Use a well-posed parameterisation" in comparison.solver("PR").refused
    assert comparison.solver("FB").refused is None and comparison.solver("FB").factor is None
    assert [m.solver for m in comparison.measurements] == ["FB", "Newton"]
    assert all(m.error_bound is None and m.converged for m in comparison.measurements)
    json.dumps(plain(comparison), allow_nan=False)


def test_failures_are_measured_not_hidden(layer, inputs):
    comparison = compare(layer, inputs, {"Euler": ExplicitEuler(), "idle": Idle()}, (1e-8,), repeats=1, max_steps=5)
    euler, idle = comparison.measurements
    assert not euler.converged and "CONVERGED" not in euler.status
    assert not idle.converged and idle.distance == pytest.approx(1.0) and idle.relative_residual > 0.1
    assert idle.error_bound > 1


def test_diverging_rows_become_null(layer, inputs):
    diverging = {"FB": ForwardBackward(step=1e6)}
    comparison = compare(layer, inputs, diverging, (1e-8,), repeats=1, max_steps=400)
    assert not comparison.measurements[0].converged
    json.dumps(plain(comparison), allow_nan=False)


def test_some_solvers_get_fewer_rows(layer, inputs):
    solvers = {"PR": PeacemanRachford(), "DP": DormandPrince()}
    comparison = compare(layer, inputs, solvers, (1e-6,), row_limits={"DP": 3}, repeats=1)
    assert [m.rows for m in comparison.measurements] == [12, 3]
    alone = compare(layer, inputs[:3], {"DP": DormandPrince()}, (1e-6,), repeats=1).measurements[0]
    limited = comparison.measurements[1]
    plain = {"seconds": 0, "seconds_range": (0, 0), "distance": 0}
    assert replace(limited, **plain) == replace(alone, **plain)
    assert limited.seconds_range[0] <= limited.seconds <= limited.seconds_range[1]


def test_wrong_settings_are_named(layer, inputs):
    with pytest.raises(InputError, match="float64"):
        compare(layer.float(), inputs.float(), SOLVERS)
    layer.double()
    for options, named in (
        ({"solvers": {}}, "solvers"),
        ({"tolerances": ()}, "tolerances"),
        ({"tolerances": (1e-3, 0.0)}, "tolerance"),
        ({"repeats": 0}, "repeats"),
        ({"max_steps": 0}, "max_steps"),
        ({"inputs": inputs[:0]}, "rows"),
    ):
        with pytest.raises(InputError, match=named):
            compare(**({"layer": layer, "inputs": inputs, "solvers": SOLVERS} | options))
