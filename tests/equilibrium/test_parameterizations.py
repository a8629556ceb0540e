"""Every parameter value gives weights with the certificate asked for; checked from the matrices alone."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from contracting.errors import InputError
from equilibrium import MonDEQ, Monotone, Unconstrained, Weights
from equilibrium.convolution.geometry import Geometry
from equilibrium.convolution.parameterization import ConvolutionalMonotone, MetricShape
from equilibrium.parameterizations import gram
from equilibrium.parameterizations.monotone import bounded

SHAPES = [(1, 1, 1), (3, 4, 2), (5, 12, 3)]


def randomised(free: torch.nn.Module, seed: int, size: float = 1.0) -> torch.nn.Module:
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in free.parameters():
            parameter.copy_(size * torch.randn_like(parameter))
    return free


def condition_1(weights: Weights) -> float:
    """λmin(2Λ − ΛW − WᵀΛ) over the size of its entries."""
    assert weights.metric is not None
    lam, W = torch.diag(weights.metric.weights), weights.state.to_dense().detach()
    M = 2 * lam - lam @ W - W.mT @ lam
    return float(torch.linalg.eigvalsh(M)[0] / M.abs().max())


def lipschitz_lmi(weights: Weights, gamma: float) -> float:
    """Smallest eigenvalue of the matrix inequality with D, relative to its entries; Λ is scaled by γ (ρ = γ²)."""
    assert weights.metric is not None
    lam, W = gamma * torch.diag(weights.metric.weights), weights.state.to_dense().detach()
    U, C = weights.input.detach(), weights.output.detach()
    D = torch.zeros(C.shape[0], U.shape[1], dtype=U.dtype) if weights.feedthrough is None else weights.feedthrough
    D = D.detach()
    corner = 2 * lam - lam @ W - W.mT @ lam - C.mT @ C
    off = -(lam @ U + C.mT @ D)
    M = torch.cat(
        [
            torch.cat([corner, off], dim=1),
            torch.cat([off.mT, gamma**2 * torch.eye(U.shape[1], dtype=U.dtype) - D.mT @ D], dim=1),
        ]
    )
    return float(torch.linalg.eigvalsh(M)[0] / M.abs().max())


def worst_gain(weights: Weights) -> float:
    """max over slope patterns J ∈ {0, 1}ⁿ of ‖W_o(I − JW)⁻¹JU + D‖: what the Lipschitz constant must not be below."""
    W, U, C = weights.state.to_dense().detach(), weights.input.detach(), weights.output.detach()
    n = W.shape[0]
    worst = 0.0
    for pattern in itertools.product([0.0, 1.0], repeat=n):
        J = torch.tensor(pattern, dtype=W.dtype)[:, None]
        gain = C @ torch.linalg.solve(torch.eye(n, dtype=W.dtype) - J * W, J * U)
        if weights.feedthrough is not None:
            gain = gain + weights.feedthrough.detach()
        worst = max(worst, float(torch.linalg.matrix_norm(gain, 2)))
    return worst


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("learn_metric", [True, False])
@pytest.mark.parametrize("c", [None, 0.0, 0.4, 0.9])
@pytest.mark.parametrize("gamma", [None, 0.05, 3.0])
def test_well_posed_for_every_parameter_value(
    shape: tuple[int, int, int], learn_metric: bool, c: float | None, gamma: float | None
) -> None:
    for seed in range(5):
        free = Monotone(
            *shape,
            lipschitz=gamma,
            contraction_rate=c,
            epsilon=0.01,
            learn_metric=learn_metric,
            dtype=torch.float64,
        )
        weights = randomised(free, seed).explicit()  # type: ignore[operator]
        assert condition_1(weights) > 0


@pytest.mark.parametrize("feedthrough", [False, True])
@pytest.mark.parametrize("c", [None, 0.3])
@pytest.mark.parametrize("gamma", [0.05, 1.0, 20.0])
def test_lipschitz_bound_holds_and_is_not_vacuous(gamma: float, c: float | None, feedthrough: bool) -> None:
    ratios = []
    for seed in range(20):
        free = Monotone(
            4, 6, 3, lipschitz=gamma, contraction_rate=c, epsilon=1e-3, feedthrough=feedthrough, dtype=torch.float64
        )
        weights = randomised(free, seed, size=0.5).explicit()  # type: ignore[operator]
        assert weights.lipschitz is not None
        assert float(weights.lipschitz) == pytest.approx(gamma)
        assert lipschitz_lmi(weights, gamma) > -1e-10
        ratios.append(worst_gain(weights) / gamma)
    assert max(ratios) <= 1
    if c is None and gamma <= 1:
        assert max(ratios) > 0.3


def test_a_broken_lipschitz_model_fails_the_check() -> None:
    weights = randomised(Monotone(4, 6, 3, lipschitz=0.5, dtype=torch.float64), 1).explicit()  # type: ignore[operator]
    assert lipschitz_lmi(weights, 0.5) > -1e-10
    assert lipschitz_lmi(weights, 0.05) < -1e-6


def rate_in(P: Tensor, jacobians: list[Tensor]) -> float:
    """The best c with sym(P(F − I)) ⪯ −cP for all F; the fields are affine in the slopes, so vertices decide."""
    root = torch.linalg.cholesky(P).mT
    measures = [torch.linalg.solve_triangular(root, root @ F, upper=True, left=False) for F in jacobians]
    return 1 - max(float(torch.linalg.eigvalsh((M + M.mT) / 2)[-1]) for M in measures)


def vertices(n: int) -> list[Tensor]:
    return [torch.tensor(p, dtype=torch.float64) for p in itertools.product([0.0, 1.0], repeat=n)]


def firing_rate_rate(weights: Weights, P: Tensor) -> float:
    W = weights.state.to_dense().detach()
    return rate_in(P, [J[:, None] * W for J in vertices(W.shape[0])])


def hopfield_rate(weights: Weights, P: Tensor) -> float:
    W = weights.state.to_dense().detach()
    return rate_in(P, [W * J for J in vertices(W.shape[0])])


@pytest.mark.parametrize("gamma", [None, 1.0])
@pytest.mark.parametrize("c", [0.0, 0.2, 0.5, 0.8])
def test_contracting_variants_contract_at_their_rate(c: float, gamma: float | None) -> None:
    for seed in range(10):
        free = Monotone(3, 5, 2, lipschitz=gamma, contraction_rate=c, epsilon=1e-3, dtype=torch.float64)
        weights = randomised(free, seed).explicit()  # type: ignore[operator]
        assert weights.firing_rate_metric is not None and weights.hopfield_metric is not None
        assert firing_rate_rate(weights, weights.firing_rate_metric.matrix) >= c - 1e-9
        assert hopfield_rate(weights, weights.hopfield_metric.matrix) >= c - 1e-9


def test_without_the_contraction_term_strong_skew_does_not_contract() -> None:
    """The negative control: the same parameters without c fail the rate that c would certify."""
    plain = randomised(Monotone(3, 5, 2, epsilon=1e-3, dtype=torch.float64), 0, size=3.0)
    weights = plain.explicit()  # type: ignore[operator]
    assert weights.firing_rate_metric is None and weights.contraction_rate is None
    G = torch.diag(weights.metric.weights)
    assert firing_rate_rate(weights, G) < 0


def test_mondeq_and_unconstrained_formulas() -> None:
    free = randomised(MonDEQ(3, 4, 2, epsilon=0.7, dtype=torch.float64), 3)
    weights = free.explicit()  # type: ignore[operator]
    expected = 0.3 * torch.eye(4, dtype=torch.float64) - free.V.mT @ free.V - free.S + free.S.mT
    assert torch.allclose(weights.state.to_dense(), expected)
    control = Unconstrained(3, 4, 2).explicit()
    assert control.metric is None and control.lipschitz is None and control.contraction_rate is None


def test_learnt_gamma_gets_a_gradient_and_stays_certified() -> None:
    free = Monotone(3, 4, 2, lipschitz=0.8, learn_lipschitz=True, dtype=torch.float64)
    weights = free.explicit()
    weights.state.to_dense().square().sum().backward()
    assert free.log_gamma is not None and free.log_gamma.grad is not None and free.log_gamma.grad != 0
    with torch.no_grad():
        free.log_gamma.add_(1.0)
    assert lipschitz_lmi(free.explicit(), 0.8 * 2.718281828) > -1e-10


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lipschitz": 0.0}, "lipschitz"),
        ({"lipschitz": -1.0}, "lipschitz"),
        ({"lipschitz": float("nan")}, "lipschitz"),
        ({"lipschitz": "1"}, "lipschitz"),
        ({"lipschitz": 1e-300}, "lipschitz"),
        ({"lipschitz": 1e-200, "dtype": torch.float64}, "lipschitz"),
        ({"lipschitz": 1e-100, "dtype": torch.float32}, "lipschitz"),
        ({"lipschitz": 1e20, "dtype": torch.float32, "learn_lipschitz": True}, "lipschitz"),
        ({"learn_lipschitz": True}, "learn_lipschitz"),
        ({"contraction_rate": 1.0}, "contraction_rate"),
        ({"contraction_rate": -0.1}, "contraction_rate"),
        ({"epsilon": 0.0}, "epsilon"),
        ({"dtype": torch.int64}, "dtype"),
    ],
)
def test_bad_settings_are_refused_by_name(settings: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=rf"\b{message}\b"):
        Monotone(3, 4, 2, **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("power", [-0.49, 0.49])
def test_a_constant_within_the_range_works_to_its_ends(dtype: torch.dtype, power: float) -> None:
    """γ² is just representable: weights, certificate and gradients are finite, with the term that takes the square."""
    gamma = torch.finfo(dtype).max ** power
    free = Monotone(3, 4, 2, lipschitz=gamma, feedthrough=True, dtype=dtype)
    assert free.D is not None
    torch.nn.init.normal_(free.D)
    weights = free.explicit()
    assert weights.lipschitz is not None and weights.feedthrough is not None
    assert float(weights.lipschitz.detach()) == pytest.approx(gamma, rel=1e-4)
    assert float(torch.linalg.matrix_norm(weights.feedthrough.detach().double(), 2)) < gamma
    weights.state.to_dense().sum().backward()
    assert all(bool(p.grad.isfinite().all()) for p in free.parameters() if p.grad is not None)


@pytest.mark.parametrize("sizes", [(0, 4, 2), (3, -1, 2), (3, 4, 2.0), (3, True, 2)])
def test_bad_sizes_are_refused(sizes: tuple[object, ...]) -> None:
    with pytest.raises(InputError, match=r"\b(in|hidden|out)_features\b"):
        Monotone(*sizes)  # type: ignore[arg-type]


def test_gram_is_the_product_and_all_its_derivatives() -> None:
    X = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    assert torch.equal(gram(X), X.mT @ X)
    assert torch.autograd.gradcheck(gram, X) and torch.autograd.gradgradcheck(gram, X)
    lopsided = torch.randn(3, 3, dtype=torch.float64)  # a cotangent that is not symmetric
    (ours,) = torch.autograd.grad((lopsided * gram(X)).sum(), X)
    (expected,) = torch.autograd.grad((lopsided * (X.mT @ X)).sum(), X)
    assert torch.allclose(ours, expected)


def test_the_bounded_bracket_is_its_formula_with_all_its_derivatives() -> None:
    torch.manual_seed(0)
    shapes = (4, 4), (2, 4), (4, 3), (4,), ()
    tensors = [torch.rand(shape, dtype=torch.float64).add(0.2).requires_grad_() for shape in shapes]

    def formula(V: Tensor, C: Tensor, U: Tensor, lam: Tensor, share: Tensor) -> Tensor:
        B = lam[:, None] * U
        return V.mT @ V + share * (C.mT @ C + B @ B.mT)

    def ours(*given: Tensor) -> Tensor:
        return bounded(*given)

    assert torch.allclose(ours(*tensors), formula(*tensors))
    assert torch.autograd.gradcheck(ours, tensors) and torch.autograd.gradgradcheck(ours, tensors)
    lopsided = torch.randn(4, 4, dtype=torch.float64)  # a cotangent that is not symmetric
    for found, expected in zip(
        torch.autograd.grad((lopsided * ours(*tensors)).sum(), tensors),
        torch.autograd.grad((lopsided * formula(*tensors)).sum(), tensors),
        strict=True,
    ):
        assert torch.allclose(found, expected)


def lipschitz_of_the_numbers(weights: Weights) -> float:
    """The least γ that the inequality has with the metric as it is; infinite where Condition 1 fails."""
    assert weights.metric is not None
    lam, W, U, C = (
        t.detach().double() for t in (weights.metric.weights, weights.state.to_dense(), weights.input, weights.output)
    )
    A = lam[:, None] * (torch.eye(len(W), dtype=W.dtype) - W)
    factor, info = torch.linalg.cholesky_ex(A + A.mT)
    if info != 0:
        return float("inf")
    columns = torch.linalg.solve_triangular(factor, torch.cat([C.mT, lam[:, None] * U], 1), upper=False)
    return float(torch.linalg.matrix_norm(columns, 2)) ** 2


def rate_margin_of_the_numbers(weights: Weights, lam: Tensor, c: float) -> float:
    """λmin(4(1 − c)(G − cΛ) − S̃ᵀΨS̃), which the rate asks to be positive."""
    bracket = lam[:, None] * (torch.eye(len(lam), dtype=lam.dtype) - weights.state.to_dense().detach().double())
    G, S = (bracket + bracket.mT) / 2, (bracket - bracket.mT) / 2
    return float(torch.linalg.eigvalsh(4 * (1 - c) * (G - c * torch.diag(lam)) - S.mT @ (S / lam[:, None]))[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [1.0, 300.0, 1e3, 4e5])
@pytest.mark.parametrize("name", ["V", "S", "U", "output", "D", "psi"])
def test_what_rounding_takes_from_large_parameters_is_not_claimed(name: str, size: float, dtype: torch.dtype) -> None:
    """γ and c are claimed where the numbers have them, and nowhere else; at a usual size they are."""
    c, claims = 0.3, []
    for seed in range(4):
        torch.manual_seed(seed)
        free = Monotone(5, 20, 3, lipschitz=1.0, contraction_rate=c, feedthrough=name == "D", dtype=dtype)
        target = getattr(free, name)
        with torch.no_grad():
            direction = torch.randn_like(target)
            if name == "V":  # of rank one, so that εI alone keeps W from what rounding does
                direction = torch.outer(direction[0], direction[1]) / 4
            target.copy_(size * direction if name != "psi" else (size / 4e4 * direction))
        weights = free.explicit()
        assert weights.metric is not None
        lam = weights.metric.weights.double()
        has = rate_margin_of_the_numbers(weights, lam, c) > 0
        assert weights.contraction_rate is None or (has and weights.contraction_matrix is not None)
        if name != "D":
            gamma = lipschitz_of_the_numbers(weights)
            assert weights.lipschitz is None or gamma <= 1 + 1e-6
        claims += [weights.lipschitz, weights.contraction_rate]
    if size == 1.0 or (dtype == torch.float64 and name != "D" and size <= 300):
        assert None not in claims
    if size == 4e5 and dtype == torch.float32 and name in ("V", "S", "U", "output"):
        assert None in claims


@pytest.mark.parametrize("metric", [MetricShape.CHANNEL, MetricShape.FULL])
@pytest.mark.parametrize("log_gain", [0.0, 7.0, 18.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_rounding_takes_from_large_kernels_is_not_claimed(
    metric: MetricShape, log_gain: float, dtype: torch.dtype
) -> None:
    """The same on images, where A passes constants only and so leaves most directions to εI."""
    torch.manual_seed(0)
    geometry = Geometry(in_channels=1, channels=2, image=(4, 4))
    c = None if metric.varies_over_space else 0.2
    free = ConvolutionalMonotone(
        geometry, 2, lipschitz=1.0, contraction_rate=c, epsilon=0.1, metric=metric, dtype=dtype
    )
    with torch.no_grad():
        free.A.fill_(1.0)
        free.log_g.fill_(log_gain)
        free.psi.normal_(std=0.3)  # type: ignore[union-attr]
    weights = free.explicit()
    claims = [weights.lipschitz] if c is None else [weights.lipschitz, weights.contraction_rate]
    if claims[0] is not None:
        assert lipschitz_of_the_numbers(weights.dense()) <= 1 + 1e-6
    if c is not None and claims[1] is not None:
        assert weights.metric is not None
        assert rate_margin_of_the_numbers(weights.dense(), weights.metric.weights.double(), c) > 0
    if log_gain == 0.0 or dtype == torch.float64:
        assert None not in claims
    if log_gain == 18.0 and dtype == torch.float32:
        assert claims == [None] * len(claims) and weights.contraction_map is None
