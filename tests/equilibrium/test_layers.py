"""LBEN as an nn.Module: shapes, conventions, solvers as one argument, bad input."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
import torchdiffeq
from torch import nn

from contracting.activations.catalogue import ReLU, Tanh
from contracting.errors import InputError, PreconditionError, Status
from contracting.flows.network import FiringRate, Hopfield
from contracting.flows.splitting import ForwardBackwardFlow, PeacemanRachfordFlow
from contracting.integrators import RK4, DormandPrince
from contracting.loop.records import SolveError, Stop, Trace
from equilibrium import (
    LBEN,
    EquilibriumLayer,
    ForwardBackward,
    Implicit,
    PeacemanRachford,
    SemismoothNewton,
    Unconstrained,
    explicit_weights,
)


def layer64(**settings: object) -> LBEN:
    torch.manual_seed(0)
    return LBEN(5, 8, 3, dtype=torch.float64, **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("lead", [(), (4,), (2, 3), (0,), (2, 0, 3)], ids=str)
def test_any_leading_shape(lead: tuple[int, ...]) -> None:
    layer = layer64(lipschitz=1.0)
    x = torch.randn(*lead, 5, dtype=torch.float64)
    assert layer(x).shape == (*lead, 3)
    assert layer.equilibrium(x).shape == (*lead, 8)
    solution = layer.solve(x, trace=Trace())
    assert solution.z.shape == (*lead, 8)
    assert solution.status.shape == solution.residual.shape == solution.steps.shape == lead
    assert solution.error_bound is not None and solution.error_bound.shape == lead


def test_leading_dimensions_are_only_rows() -> None:
    layer = layer64()
    x = torch.randn(2, 3, 5, dtype=torch.float64)
    assert torch.allclose(layer(x)[1, 2], layer(x[1, 2]), atol=1e-9)


def test_forward_is_readout_of_the_solution() -> None:
    layer = layer64(feedthrough=True, lipschitz=2.0)
    with torch.no_grad():
        layer.parameterization.D.normal_()  # type: ignore[union-attr]
    x = torch.randn(4, 5, dtype=torch.float64)
    w = layer.weights()
    z = layer.solve(x).z
    assert w.feedthrough is not None
    expected = z @ w.output.mT + x @ w.feedthrough.mT + w.output_bias
    assert torch.allclose(layer(x), expected)
    W = w.state.to_dense()
    assert torch.allclose(z, torch.relu(z @ W.mT + x @ w.input.mT + w.bias), atol=1e-7)


def test_the_certified_lipschitz_constant_is_never_exceeded() -> None:
    layer = layer64(lipschitz=0.7)
    x, d = torch.randn(2, 300, 5, dtype=torch.float64)
    for size in (1e-3, 1.0, 100.0):
        moved = (layer(x + size * d) - layer(x)).norm(dim=-1) / (size * d).norm(dim=-1)
        assert moved.max() <= 0.7 + 1e-4


def test_swapping_the_solver_is_one_argument() -> None:
    x = torch.randn(6, 5, dtype=torch.float64)
    reference = layer64(lipschitz=1.0)
    reference(x).sum().backward()
    for solver in (ForwardBackward(), SemismoothNewton(), DormandPrince(), RK4(flow=Hopfield())):
        layer = layer64(lipschitz=1.0, solver=solver)
        y = layer(x)
        y.sum().backward()
        assert torch.allclose(y, reference(x), atol=1e-7)
        for (name, one), other in zip(layer.named_parameters(), reference.parameters(), strict=True):
            assert torch.equal(one, other), name
            assert torch.allclose(one.grad, other.grad, atol=1e-6), name  # type: ignore[arg-type]
        assert torch.allclose(reference.solve(x, solver).z, reference.solve(x).z, atol=1e-7)


@pytest.mark.parametrize(
    "flow", [FiringRate, Hopfield(), ForwardBackwardFlow(step=0.1), PeacemanRachfordFlow()], ids=str
)
def test_a_flow_can_be_handed_to_torchdiffeq(flow: object) -> None:
    layer = layer64()
    x = torch.randn(3, 5, dtype=torch.float64)
    field = layer.flow(flow, x)  # type: ignore[arg-type]
    start = field.init(torch.zeros(3, 8, dtype=torch.float64))
    with torch.no_grad():
        times = torch.tensor([0.0, 400.0], dtype=torch.float64)
        end = torchdiffeq.odeint(field, start, times, rtol=1e-8, atol=1e-10)[-1]
    assert torch.allclose(field.read(end), layer.solve(x).z, atol=1e-6)
    assert layer.flow(flow).problem.batch == 1  # type: ignore[arg-type]


def test_state_dict_keys_are_plain_and_nothing_is_stale_after_loading() -> None:
    layer, other = layer64(lipschitz=1.0), LBEN(5, 8, 3, lipschitz=1.0, dtype=torch.float64)
    plain = {key for key in layer.state_dict() if not key.endswith("_extra_state")}
    assert plain == {name for name, _ in (*layer.named_parameters(), ("parameterization.log_gamma", None))}
    x = torch.randn(4, 5, dtype=torch.float64)
    other.eval()
    with torch.no_grad():
        before = other(x)
        other.load_state_dict(layer.state_dict())
        assert not torch.allclose(before, other(x))
        assert torch.equal(other(x), layer(x))
        other.parameterization.U.mul_(0.5)
        assert not torch.allclose(other(x), layer(x))


def test_the_learnt_constant_travels_with_the_state_dict() -> None:
    layer = layer64(lipschitz=0.3)
    other = LBEN(5, 8, 3, lipschitz=5.0, dtype=torch.float64)
    other.load_state_dict(layer.state_dict())
    x = torch.randn(4, 5, dtype=torch.float64)
    assert torch.equal(other(x), layer(x))
    assert float(other.weights().lipschitz) == pytest.approx(0.3)  # type: ignore[arg-type]


def test_copies_pickles_and_moves() -> None:
    layer = layer64(lipschitz=1.0, contraction_rate=0.1, activation=Tanh(), solver=DormandPrince(flow=Hopfield()))
    x = torch.randn(2, 5, dtype=torch.float64)
    layer(x)
    assert torch.equal(copy.deepcopy(layer)(x), layer(x))
    assert torch.equal(pickle.loads(pickle.dumps(layer))(x), layer(x))
    buffer = io.BytesIO()
    torch.save(layer, buffer)
    buffer.seek(0)
    assert torch.equal(torch.load(buffer, weights_only=False)(x), layer(x))
    single = copy.deepcopy(layer).to(torch.float32)
    assert single(x.float()).dtype == torch.float32
    assert torch.allclose(single(x.float()).double(), layer(x), atol=1e-3)
    assert LBEN(5, 8, 3, lipschitz=1.0, device="meta").parameterization.U.device.type == "meta"


def test_trains_inside_a_sequential_model() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), LBEN(6, 12, 3, lipschitz=5.0), nn.Linear(3, 2))
    optimiser = torch.optim.Adam(model.parameters(), lr=0.02)
    x, labels = torch.randn(64, 4), torch.randint(2, (64,))
    losses = []
    for _ in range(40):
        loss = nn.functional.cross_entropy(model(x), labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]


def test_repr_says_what_the_layer_is() -> None:
    text = repr(LBEN(5, 8, 3, lipschitz=1.0, contraction_rate=0.2))
    for part in ("lipschitz=1", "contraction_rate=0.2", "ReLU()", "Automatic()", "hidden_features=8"):
        assert part in text


def test_modules_of_torch_are_taken_as_activations_and_inadmissible_ones_refused() -> None:
    assert LBEN(2, 3, 1, activation=nn.Tanh()).activation == Tanh()
    with pytest.raises(InputError, match=r"\bGELU\b"):
        LBEN(2, 3, 1, activation=nn.GELU())


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.randn(3, 4, dtype=torch.float64), "x"),
        (torch.tensor(1.0, dtype=torch.float64), "x"),
        (torch.randn(3, 5), "x"),
        (torch.ones(3, 5, dtype=torch.int64), "x"),
        ([[1.0] * 5], "x"),
        (torch.randn(3, 5, dtype=torch.float64, device="meta"), "x"),
    ],
)
def test_bad_inputs_get_one_clear_sentence(x: object, message: str) -> None:
    layer = layer64()
    for call in (layer, layer.solve, layer.problem, layer.equilibrium):
        with pytest.raises(InputError, match=rf"\b{message}\b"):
            call(x)  # type: ignore[operator]


def test_nan_weights_are_refused_before_any_work() -> None:
    layer = layer64()
    with torch.no_grad():
        layer.parameterization.V[0, 0] = float("nan")  # type: ignore[index]
    with pytest.raises(InputError, match=r"\bV\b"):
        layer(torch.randn(2, 5, dtype=torch.float64))


def test_a_nan_input_row_is_an_error_that_names_the_row() -> None:
    layer = layer64()
    x = torch.randn(4, 5, dtype=torch.float64)
    clean = layer.solve(x)
    x[1, 2] = float("nan")
    with pytest.raises(SolveError, match=r"\brows 1\b.*\bNONFINITE\b") as caught:
        layer(x)
    assert caught.value.solution is not None
    solution = layer.solve(x, throw=False)
    assert solution.status.tolist() == [Status.CONVERGED, Status.NONFINITE, Status.CONVERGED, Status.CONVERGED]
    assert torch.equal(solution.z[[0, 2, 3]], clean.z[[0, 2, 3]])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"solver": "PeacemanRachford"}, "solver"),
        ({"solver": PeacemanRachford}, "solver"),
        ({"solver": torch.nn.functional.relu}, "Method"),  # as an integrator of one's own: the way in is named
        ({"stop": 1e-6}, "stop"),
        ({"backward": "implicit"}, "backward"),
    ],
)
def test_wrong_kinds_of_settings_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=rf"\b{message}\b"):
        layer64(**settings)


def test_a_misspelt_option_is_a_type_error() -> None:
    with pytest.raises(TypeError, match=r"\blipshitz\b"):
        LBEN(2, 3, 1, lipshitz=1.0)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match=r"\bstepp\b"):
        PeacemanRachford(stepp=0.1)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match=r"\btol\b"):
        layer64().solve(torch.randn(1, 5, dtype=torch.float64), tol=1e-3)  # type: ignore[call-arg]


def test_bad_starting_points_are_refused() -> None:
    layer, x = layer64(), torch.randn(2, 5, dtype=torch.float64)
    for z0 in (torch.zeros(3, 8, dtype=torch.float64), torch.zeros(2, 8), torch.full((2, 8), float("nan")).double()):
        with pytest.raises(InputError, match=r"\bz0\b"):
            layer.solve(x, z0=z0)


def test_an_unconstrained_layer_solves_where_it_can_and_claims_nothing() -> None:
    torch.manual_seed(0)
    layer = EquilibriumLayer(Unconstrained(5, 8, 3, dtype=torch.float64))
    x = torch.randn(3, 5, dtype=torch.float64)
    solution = layer.solve(x)
    assert solution.converged.all() and solution.error_bound is None
    with pytest.raises(PreconditionError, match=r"\bSemismoothNewton\(\)"):
        layer.solve(x, PeacemanRachford())


def test_residuals_from_the_paper_style_step_test_cannot_happen() -> None:
    layer, x = layer64(), torch.randn(3, 5, dtype=torch.float64)
    solution = layer.solve(x, PeacemanRachford(step=0.003), stop=Stop(rtol=1e-4))
    assert solution.relative_residual.max() <= 1e-4


def test_explicit_weights_are_checked() -> None:
    W, U, C = torch.zeros(3, 3), torch.zeros(3, 2), torch.zeros(1, 3)
    assert explicit_weights(W, U, C, metric=torch.ones(3)).metric is not None
    cases = [
        ({"W": torch.zeros(3, 2)}, "weight"),
        ({"U": torch.zeros(2, 2)}, "U"),
        ({"output": torch.zeros(1, 2)}, "output"),
        ({"metric": torch.tensor([1.0, 0.0, 1.0])}, "weights"),
        ({"metric": torch.ones(3, dtype=torch.float64)}, "metric"),
        ({"W": torch.full((3, 3), float("nan"))}, "W"),
        ({"bias": torch.zeros(2)}, "bias"),
        ({"feedthrough": torch.zeros(2, 2)}, "feedthrough"),
    ]
    for change, message in cases:
        with pytest.raises(InputError, match=rf"\b{message}\b"):
            explicit_weights(**{"W": W, "U": U, "output": C, **change})  # type: ignore[arg-type]


def test_relu_is_the_default() -> None:
    assert LBEN(1, 1, 1).activation == ReLU()


def test_works_under_autocast_and_inference_mode_and_refuses_half_precision() -> None:
    torch.manual_seed(0)
    layer, x = LBEN(5, 8, 3, lipschitz=1.0), torch.randn(4, 5)
    expected = layer(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(layer(x), expected)
        assert torch.allclose(layer.solve(x).z, layer.equilibrium(x), atol=1e-4)
    with torch.inference_mode():
        assert torch.allclose(layer(x), expected, atol=1e-5)
    with pytest.raises(InputError, match=r"\bq\b"):
        layer.to(torch.bfloat16)(x.to(torch.bfloat16))


def test_a_problem_is_not_stale_after_its_weight_changed_in_place() -> None:
    torch.manual_seed(0)
    layer = EquilibriumLayer(Unconstrained(5, 8, 3, dtype=torch.float64))
    problem = layer.problem(torch.randn(2, 5, dtype=torch.float64))
    before = problem.linear.rough_norm
    resolvent = problem.linear.detached.resolvent(0.5).to_dense()
    with torch.no_grad():
        layer.parameterization.W.mul_(0.1)  # type: ignore[operator,union-attr]
    assert problem.linear.rough_norm == pytest.approx(0.1 * before)
    assert not torch.equal(problem.linear.detached.resolvent(0.5).to_dense(), resolvent)


def test_the_representation_tells_what_was_chosen() -> None:
    plain = repr(LBEN(2, 3, 1, lipschitz=2.0))
    assert "lipschitz=2," in plain and "solver=Automatic()" in plain and "stop" not in plain
    other = repr(LBEN(2, 3, 1, stop=Stop(rtol=1e-6), backward=Implicit(stop=Stop(rtol=1e-7))))
    assert "stop=Stop(rtol=1e-06" in other and "backward=Implicit(" in other
    assert "lipschitz=?, learn_lipschitz=True" in repr(
        LBEN(2, 3, 1, lipschitz=2.0, learn_lipschitz=True, device=torch.device("meta"))
    )
