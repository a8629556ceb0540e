"""The complete contracting parameterisation: what it reaches, what it keeps after rounding, and how it starts."""

from __future__ import annotations

import importlib
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from contracting.certificates import upper_bound
from contracting.certificates.systems import FiringRateSystem
from contracting.errors import InputError, PreconditionError
from contracting.modules.ball import from_unit_ball, onto_unit_ball
from equilibrium import LBEN, Contractive, EquilibriumLayer, Monotone, Weights, explicit_weights
from equilibrium.parameterizations.room import Room

D = torch.float64


@pytest.fixture(scope="module")
def draws():
    """The benchmark that draws networks and puts them before the checkers."""
    folder = str(Path(__file__).resolve().parents[2] / "benchmarks")
    sys.path.insert(0, folder)
    yield importlib.import_module("contractive_draws")
    sys.path.remove(folder)


def normal(free: Contractive, size: float = 1.0, seed: int = 0) -> Contractive:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in free.parameters():
            parameter.copy_(size * torch.randn(parameter.shape, generator=generator))
    return free


def gap(one: Weights, other: Weights) -> float:
    """The largest difference of two networks relative to the size of each of their tensors."""
    pairs = [
        (one.state.to_dense(), other.state.to_dense()), (one.input, other.input), (one.output, other.output),
        (one.bias, other.bias), (one.output_bias, other.output_bias),
    ]  # fmt: skip
    if one.feedthrough is not None and other.feedthrough is not None:
        pairs.append((one.feedthrough, other.feedthrough))
    return max(float(((a - b).abs().max() / (1 + a.abs().max())).detach()) for a, b in pairs)


@pytest.mark.parametrize("shape", [(3, 3), (2, 5), (5, 2)])
def test_matrices_and_the_ball_are_one_to_one(shape: tuple[int, int]) -> None:
    for scale in (1e-3, 1.0, 100.0):
        X = scale * torch.randn(shape, dtype=D, generator=torch.Generator().manual_seed(0))
        S = onto_unit_ball(X)
        assert torch.linalg.matrix_norm(S, 2) < 1
        assert torch.allclose(from_unit_ball(S), X, rtol=1e-6, atol=1e-12)
    edge = torch.eye(*shape, dtype=D)
    assert torch.allclose(onto_unit_ball(from_unit_ball(0.999999 * edge)), 0.999999 * edge, atol=1e-12)
    with pytest.raises(torch.linalg.LinAlgError):
        from_unit_ball(1.05 * edge)
    assert torch.autograd.gradcheck(onto_unit_ball, X.div(100).requires_grad_())


def test_every_draw_keeps_what_it_promises_and_what_lies_outside_is_refused(draws) -> None:
    """Parameters of 1e-6 to 1e3; the benchmark draws ten thousand."""
    for seed in range(15):
        free = draws.drawn(seed, 8)
        assert draws.refused(free) == []
        for which in ("S", "T"):
            outer = draws.drawn(seed, 8, low=-1, high=1)
            with draws.outside(outer, which):
                try:
                    assert draws.refused(outer) != []
                except torch.linalg.LinAlgError:
                    pass


@pytest.mark.parametrize("seed", [1141, 1807, 4619, 5459])
def test_the_other_flow_keeps_the_rate_of_weights_that_are_much_larger_than_what_is_left(draws, seed: int) -> None:
    """Those of ten thousand draws whose metric, or whose proof, once was too far from exact."""
    free = draws.drawn(seed, 10)
    assert draws.refused(free) == []
    weights = free.explicit()
    forged = replace(weights, contraction_rate=1 - 0.9 * (1 - weights.contraction_rate))
    free.explicit, free.contraction_rate = lambda: forged, forged.contraction_rate  # type: ignore[method-assign]
    assert "Hopfield" in draws.refused(free)


@pytest.mark.parametrize("dtype", [torch.float32, D])
def test_the_stored_numbers_keep_it_in_fifty_digits(draws, dtype: torch.dtype) -> None:
    """At the largest parameters, where rounding takes most, and of the network that would be on the edge."""
    for size, feedthrough in ((1e3, False), (1e12, False), (1e3, True)):
        free = normal(Contractive(2, 4, 2, contraction_rate=0.0, lipschitz=1.0, feedthrough=feedthrough, dtype=dtype))
        with torch.no_grad():
            for parameter in (free.V, free.S, free.U, free.output):
                parameter.mul_(size)
        assert min(draws.exact_margins(free.explicit())) > 0
    for offset in (0.0, 1e-3):
        forged = free.explicit()
        W = (1 + offset) * forged.state.to_dense() + 10 * offset * torch.eye(4, dtype=dtype)
        forged = replace(explicit_weights(W, forged.input, forged.output), **_claims(forged))
        assert (min(draws.exact_margins(forged)) > 0) == (offset == 0)


def _claims(weights: Weights) -> dict[str, object]:
    names = ("metric", "lipschitz", "contraction_rate", "contraction_matrix", "feedthrough")
    return {name: getattr(weights, name) for name in names}


@pytest.mark.parametrize("feedthrough", [False, True])
@pytest.mark.parametrize(("c", "gamma"), [(0.0, None), (0.0, 0.5), (0.5, 2.0), (0.9, 0.05)])
def test_every_certified_network_is_reached(c: float, gamma: float | None, feedthrough: bool) -> None:
    """Weights with a certificate that were not made from parameters → parameters → the weights, to 1e-10."""
    generator = torch.Generator().manual_seed(1)

    def ball(*shape: int) -> Tensor:
        X = torch.randn(*shape, generator=generator, dtype=D)
        return 0.98 * X / torch.linalg.matrix_norm(X, 2)

    for n, inputs, outputs in ((1, 1, 1), (4, 3, 2), (9, 2, 5)):
        for _ in range(3):
            V, a = torch.randn(n, n, generator=generator, dtype=D), torch.randn(n, generator=generator, dtype=D).exp()
            M = 2 * (1 - c) ** 0.5 * ball(n, n) @ V - V.mT @ V
            R = 2 * torch.eye(n, dtype=D) - M - M.mT
            values, vectors = torch.linalg.eigh(R)  # another root of R than the factor of Cholesky
            B = (gamma or 1.0) ** 0.5 * (vectors * values.sqrt()) @ ball(n, outputs + inputs)
            unit = ball(outputs, inputs) if feedthrough else torch.zeros(outputs, inputs, dtype=D)
            rest, directions = torch.linalg.eigh(torch.eye(inputs, dtype=D) - unit.mT @ unit)
            reach = B[:, outputs:] @ (directions * rest.sqrt()) @ directions.mT - B[:, :outputs] @ unit
            given = explicit_weights(
                M * a / a[:, None], reach / a[:, None], (a[:, None] * B[:, :outputs]).mT,
                bias=torch.randn(n, generator=generator, dtype=D), metric=a.square(),
                feedthrough=(gamma or 1.0) * unit if feedthrough else None,
            )  # fmt: skip
            known = replace(given, contraction_matrix=a[:, None] * (V.mT @ V) * a)
            for weights in (given, known):
                free = Contractive.of(weights, contraction_rate=c, lipschitz=gamma)
                assert gap(free.explicit(), given) < 1e-10
            if gamma is not None:
                with pytest.raises(PreconditionError, match="γ"):
                    Contractive.of(known, contraction_rate=c, lipschitz=0.9 * gamma)
            with pytest.raises(PreconditionError, match="c = "):
                Contractive.of(known, contraction_rate=1 - 0.9 * (1 - c))


@pytest.mark.parametrize("dtype", [torch.float32, D])
def test_parameters_are_found_again(dtype: torch.dtype) -> None:
    for c, gamma in ((0.0, 0.3), (0.5, 1.0)):
        free = normal(Contractive(3, 12, 2, contraction_rate=c, lipschitz=gamma, dtype=dtype))
        weights = free.explicit()
        again = Contractive.of(weights, contraction_rate=c, lipschitz=gamma, dtype=D)
        assert gap(again.explicit(), weights) < (1e-10 if dtype == D else 1e-5)


def test_networks_of_the_older_parameterisation_are_reached_and_most_others_not_by_it() -> None:
    for seed in range(4):
        torch.manual_seed(seed)
        older = Monotone(3, 8, 2, contraction_rate=0.4, lipschitz=0.7, epsilon=1e-2, dtype=D)
        with torch.no_grad():
            older.S.mul_(4)
            older.psi.normal_()
        weights = older.explicit()
        assert gap(Contractive.of(weights, contraction_rate=0.4, lipschitz=0.7).explicit(), weights) < 1e-10
        # in the older one P + W = 2(1 − c)I − S̃, whose symmetric part is fixed by that of W
        own = normal(Contractive(3, 8, 2, contraction_rate=0.4, dtype=D), seed=seed).explicit()
        lam = own.metric.weights
        bracket = lam[:, None] * (torch.eye(8, dtype=D) - own.state.to_dense())
        G, S = (bracket + bracket.mT) / 2, (bracket - bracket.mT) / 2
        assert torch.linalg.eigvalsh(2.4 * (G - 0.4 * torch.diag(lam)) - S.mT @ (S / lam[:, None]))[0] < 0


def test_what_has_no_certificate_is_not_reached() -> None:
    W, one = 2.2 * torch.tensor([[0.0, 1.0], [-1.0, 0.0]], dtype=D), torch.ones(2, 1, dtype=D)
    weights = explicit_weights(W, one, one.mT, metric=torch.ones(2, dtype=D))  # its best rate is 1 − 2.2/2
    with pytest.raises(PreconditionError, match="certificate"):
        Contractive.of(weights, contraction_rate=0.0)
    contracting = replace(weights, state=type(weights.state)(W / 2))  # 1 − 1.1/2
    assert Contractive.of(contracting, contraction_rate=0.44).contraction_rate == 0.44
    with pytest.raises(PreconditionError, match="certificate"):
        Contractive.of(contracting, contraction_rate=0.46)
    with pytest.raises(PreconditionError, match="metric"):
        Contractive.of(replace(weights, metric=None), contraction_rate=0.0)


def test_the_rate_is_attained() -> None:
    """With S close to the edge c is the truth, not something below it: no norm has more than a little above it."""
    free = Contractive(1, 2, 1, contraction_rate=0.3, dtype=D)
    with torch.no_grad():
        free.V.copy_(0.7**0.5 * torch.eye(2))
        free.S.copy_(1e5 * torch.eye(2))
    W = free.explicit().state.to_dense().detach()
    assert upper_bound(FiringRateSystem(W=W)).rate == pytest.approx(0.3, abs=1e-4)


@pytest.mark.parametrize("n", [10, 100, 500])
@pytest.mark.parametrize("c", [0.0, 0.5])
def test_it_starts_with_values_and_gradients_of_order_one(n: int, c: float) -> None:
    torch.manual_seed(0)
    layer = EquilibriumLayer(Contractive(64, n, 10, contraction_rate=c, lipschitz=1.0))
    x = torch.randn(32, 64)
    assert 0.02 < float(layer.solve(x).z.square().mean().sqrt()) < 2
    y = layer(x)
    assert 0.02 < float(y.detach().std()) < 2
    y.square().sum().div(32).backward()
    for name, parameter in layer.parameterization.named_parameters():
        assert parameter.grad is not None and 1e-4 < float(parameter.grad.norm()) < 30, name


def test_options() -> None:
    assert isinstance(LBEN(2, 3, 1, contraction_rate=0.1).parameterization, Contractive)
    assert isinstance(LBEN(2, 3, 1).parameterization, Monotone)
    with pytest.raises(InputError, match=r"\bepsilon\b"):
        LBEN(2, 3, 1, contraction_rate=0.1, epsilon=0.1)
    for dtype, last in ((torch.float32, 1e-12), (D, 1e-17)):
        with pytest.raises(InputError, match=r"\bcontraction_rate\b"):
            Contractive(2, 3, 1, contraction_rate=1 - last, dtype=dtype)
    assert Contractive(2, 3, 1, learn_metric=False, dtype=D).explicit().metric.weights.tolist() == [1, 1, 1]


def test_the_room_is_small() -> None:
    """What is given up at the edge, as the page of the derivation says."""
    assert Room.of(size=100, rate=0.5, dtype=torch.float32, feedthrough=False).edge < 4e-4
    assert Room.of(size=100, rate=0.5, dtype=D, feedthrough=False).edge < 5e-6
