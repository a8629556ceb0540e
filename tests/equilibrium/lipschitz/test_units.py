"""Lipschitz constants in all units: weights from 1e-300 to 1e300, graded coordinates, differences that vanish."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from contracting.certificates import CertificateError, find_metric
from contracting.errors import PreconditionError
from equilibrium import LBEN, explicit_weights, from_weights
from equilibrium.lipschitz import (
    BuiltIn,
    Elementwise,
    FirstOrder,
    InteriorPoint,
    LipschitzCertificate,
    LipschitzFinder,
    LipschitzSystem,
    Norm,
    PairAscent,
    PatternSearch,
    RegionWalk,
    attained_lipschitz,
    certified_bound,
    certified_lipschitz,
    check_lipschitz,
    lipschitz_report,
    lipschitz_system,
    pair_ratio,
    pairwise_lipschitz,
    verify_report,
)
from equilibrium.parameterizations import Monotone
from tests.systems import EVERY_KIND, EXAMPLES, Drawn, normal, systems

F64 = torch.float64
SOME = settings(EXAMPLES, max_examples=20)  # each is an interior-point optimum or two


def matrices() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    W = 0.3 * normal(5, 5, seed=0) - 0.5 * torch.eye(5, dtype=F64)
    return W, normal(5, 3, seed=1), normal(2, 5, seed=2), normal(2, 3, seed=3)


@pytest.mark.parametrize("size", [1e-300, 1e-160, 1e20, 1e300])
def test_a_constant_scales_with_the_inputs_and_the_outputs(size: float) -> None:
    W, U, C, D = matrices()
    plain, fed = certified_lipschitz(explicit_weights(W, U, C)).bound, explicit_weights(W, U, C, feedthrough=D)
    through = certified_lipschitz(fed).bound
    for u, c in ((size, 1.0), (1.0, size)):
        assert certified_lipschitz(explicit_weights(W, u * U, c * C)).bound == pytest.approx(size * plain, rel=1e-9)
        scaled = explicit_weights(W, u * U, c * C, feedthrough=size * D)
        assert certified_lipschitz(scaled).bound == pytest.approx(size * through, rel=1e-9)
        certificate = certified_lipschitz(scaled, norm=Norm.LINF)
        assert certificate.bound == pytest.approx(size * certified_lipschitz(fed, norm=Norm.LINF).bound, rel=1e-9)
        system = lipschitz_system(scaled)
        for broken in (replace(system, C=1.1 * system.C, D=1.1 * system.D), replace(system, U=1.1 * system.U)):
            with pytest.raises(CertificateError):
                check_lipschitz(InteriorPoint().certify(system), broken)


@pytest.mark.parametrize("size", [1e-100, 1e-20, 1e-9, 1.0, 1e20])
def test_what_a_pair_attains_scales_with_the_inputs(size: float) -> None:
    W, U, C, _ = matrices()
    layer = from_weights(explicit_weights(W, size * U, C, metric=find_metric(W).metric.weights))
    for search in (PatternSearch(restarts=4, rounds=1, flips=4), PairAscent(steps=5)):
        found = lipschitz_report(layer, searches=[search], starts=2)
        assert 0.6 * found.certified < verify_report(layer, found) <= found.certified
    x, step = torch.ones(3, dtype=F64), torch.tensor([1.0, 0.0, 0.0], dtype=F64)
    near = pair_ratio(layer, x, x + 1e-11 * step)
    assert near == pytest.approx(pair_ratio(layer, x, x + 1e-3 * step), rel=0.1) and near > 0


def test_what_underflows_proves_nothing() -> None:
    """I − W is singular or worse; with entries of 1e-200 and a subnormal Λ nothing of it was left in the products."""
    ones = torch.ones(10, 1, dtype=F64)
    for w in (0.1, 0.2, 3.0):
        system = lipschitz_system(explicit_weights(w * ones @ ones.mT, 1e-200 * ones, 1e-200 * ones.mT))
        for lam in (5e-324, 1e-323, 1e-300, 1.0):
            for bound in (1e-170, 1e-160, 1.0):
                claim = LipschitzCertificate(
                    bound=bound, norm=Norm.L2, method="", slopes=(0, 1), margin=0.0, multiplier=lam * ones[:, 0]
                )
                with pytest.raises(CertificateError):
                    check_lipschitz(claim, system)


def test_equal_rows_of_the_readout_differ_by_nothing() -> None:
    W, U, C, _ = matrices()
    bounds = pairwise_lipschitz(explicit_weights(W, U, torch.cat([C, C[:1]]))).bounds
    assert float(bounds[0, 2]) == 0.0 < float(bounds[0, 1]) == float(bounds[1, 2])
    assert certified_lipschitz(explicit_weights(W, U, C), following=torch.zeros(1, 2, dtype=F64)).bound == 0.0


def test_a_system_known_only_up_to_errors_gets_a_bound_of_their_size() -> None:
    W, U, C, _ = matrices()
    errors = torch.full((1, 2), 1e-9, dtype=F64)
    system = lipschitz_system(explicit_weights(W, U, C)).with_output(0 * errors, errors)
    assert 1e-9 < certified_bound(system).bound < 1e-6


@pytest.mark.parametrize("size", [1.0, 1e20, 1e150])
@pytest.mark.parametrize("order", [[0, 1, 2], [2, 0, 1], [1, 2, 0]])
def test_a_triangle_of_any_size_is_a_perceptron(size: float, order: list[int]) -> None:
    """Other units of its neurons make it as small as one likes; (I − |W|)⁻¹ is I + |W| + |W|²."""
    W = size * torch.tensor([[0, 2, -1], [0, 0, 3], [0, 0, 0]], dtype=F64)[order][:, order]
    U, C, size_of_W = normal(3, 2, seed=3), normal(2, 3, seed=4), W.abs()
    truth = C.abs() @ (torch.eye(3, dtype=F64) + size_of_W + size_of_W @ size_of_W) @ U.abs()
    weights = explicit_weights(W, U, C)
    found = Elementwise(norm=Norm.LINF).certify(lipschitz_system(weights))
    assert found.bound == pytest.approx(float(truth.sum(1).max()), rel=1e-9)
    assert certified_lipschitz(weights, norm=Norm.LINF).bound <= found.bound
    assert certified_lipschitz(weights).bound <= Elementwise().certify(lipschitz_system(weights)).bound


@pytest.mark.parametrize("seed", range(4))
def test_graded_weights_are_certified_without_a_metric(seed: int) -> None:
    A, S = normal(6, 6, seed=seed), normal(6, 6, seed=seed + 50)
    W = 0.8 * torch.eye(6, dtype=F64) - 0.3 * A @ A.mT - S + S.mT
    d = torch.logspace(-4, 4, 6, dtype=F64)[torch.randperm(6, generator=torch.Generator().manual_seed(seed))]
    U, C = normal(6, 3, seed=seed + 60), normal(2, 6, seed=seed + 70)
    graded = certified_lipschitz(explicit_weights(W * d[:, None] / d, U * d[:, None], C / d)).bound
    known = certified_lipschitz(explicit_weights(W, U, C, metric=torch.ones(6, dtype=F64))).bound
    assert graded == pytest.approx(known, rel=1e-5)


def test_a_metric_graded_without_limit_is_no_bad_start() -> None:
    """find_metric makes a triangular W as monotone as it can: its Λ spans a hundred decades."""
    W, U, C = normal(12, 12, seed=0).tril(-1), normal(12, 3, seed=1), normal(2, 12, seed=2)
    metric = find_metric(W).metric
    assert metric is not None and float(metric.weights.max() / metric.weights.min()) > 1e6
    given = certified_lipschitz(explicit_weights(W, U, C, metric=metric.weights))
    free = certified_lipschitz(explicit_weights(W, U, C))
    assert given.method == "interior point on Λ"
    assert given.bound == pytest.approx(free.bound, rel=1e-4)
    assert given.bound < 0.2 * Elementwise().certify(lipschitz_system(explicit_weights(W, U, C))).bound


def drawn_system(
    drawn: Drawn, *, feedthrough: bool, d: Tensor | None = None, p: int = 0, q: int = 0
) -> LipschitzSystem:
    n = len(drawn.W)
    U, C, D = normal(n, 2, seed=drawn.seed + 3), normal(2, n, seed=drawn.seed + 4), normal(2, 2, seed=drawn.seed + 5)
    W, scale = drawn.W, torch.ones(n, dtype=F64) if d is None else d
    return lipschitz_system(
        explicit_weights(
            W * scale[:, None] / scale,
            2.0**p * U * scale[:, None],
            2.0**q * C / scale,
            feedthrough=2.0 ** (p + q) * D if feedthrough else None,
        )
    )


IN_UNITS = {
    "drawn": systems(largest=3, kinds=tuple(EVERY_KIND), decades=4),
    "feedthrough": st.booleans(),
    "p": st.integers(-400, 400),
    "q": st.integers(-400, 400),
}


def certified_in_both(
    finder: LipschitzFinder | Elementwise, drawn: Drawn, feedthrough: bool, p: int, q: int
) -> list[LipschitzCertificate]:
    """The certificates in the drawn coordinates and in graded ones with other units; none where both are refused."""
    found = []
    for system in (
        drawn_system(drawn, feedthrough=feedthrough),
        drawn_system(drawn, feedthrough=feedthrough, d=drawn.d, p=p, q=q),
    ):
        try:
            found.append(finder.certify(system))
        except (CertificateError, PreconditionError):
            continue
        assert check_lipschitz(found[-1], system) > 0
    assert len(found) != 1
    return found


@settings(EXAMPLES, max_examples=400)
@given(norm=st.sampled_from(Norm), **IN_UNITS)
def test_elementwise_constants_are_the_same_in_all_coordinates(
    norm: Norm, drawn: Drawn, feedthrough: bool, p: int, q: int
) -> None:
    if found := certified_in_both(Elementwise(norm=norm), drawn, feedthrough, p, q):
        assert found[1].bound == pytest.approx(found[0].bound * 2.0 ** (p + q), rel=1e-5)


@settings(EXAMPLES, max_examples=120)
@given(**IN_UNITS)
def test_optimal_constants_are_the_same_in_all_coordinates(drawn: Drawn, feedthrough: bool, p: int, q: int) -> None:
    found = certified_in_both(InteriorPoint(tolerance=1e-4), drawn, feedthrough, p, q)
    if drawn.kind in ("monotone", "steep", "barely monotone", "tiny", "subnormal", "zero"):
        assert found
    if not found:
        return
    one, other = found
    assert other.bound == pytest.approx(one.bound * 2.0 ** (p + q), rel=3e-4)
    if drawn.kind == "zero":  # W = 0 is a linear map followed by σ, with gain ‖CU‖ where every slope is 1
        with pytest.raises(CertificateError):
            plain = drawn_system(drawn, feedthrough=feedthrough)
            truth = float(torch.linalg.matrix_norm(plain.C @ plain.U + plain.D, 2))
            check_lipschitz(replace(one, bound=truth * (1 - 1e-9)), plain)


@SOME
@given(seed=st.integers(0, 10**6), n=st.integers(1, 5), gamma=st.floats(1e-3, 1e3), scale=st.floats(0.05, 3.0))
def test_attained_is_at_most_certified_is_at_most_built_in(seed: int, n: int, gamma: float, scale: float) -> None:
    torch.manual_seed(seed)
    layer = LBEN(2, n, 2, lipschitz=gamma, epsilon=0.1, dtype=F64)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(scale * torch.randn_like(parameter))
    certified = certified_lipschitz(layer).bound
    assert certified <= gamma * (1 + 1e-6)
    searches = [PatternSearch(restarts=4, rounds=1, flips=8), RegionWalk(steps=2)]
    assert attained_lipschitz(layer, searches=searches, starts=2, seed=seed).ratio <= certified


@SOME
@given(seed=st.integers(0, 10**6), n=st.integers(1, 6), low=st.sampled_from([0.0, 0.0, 0.2]))
def test_no_finder_is_below_the_best(seed: int, n: int, low: float) -> None:
    torch.manual_seed(seed)
    with torch.no_grad():
        free = Monotone(2, n, 2, lipschitz=1.0, feedthrough=seed % 2 == 0, epsilon=0.1, dtype=F64)
        system = replace(lipschitz_system(free.explicit()), slopes=(low, 1.0))
    best = InteriorPoint().certify(system).bound
    assert best <= FirstOrder(steps=40).certify(system).bound * (1 + 1e-5)
    assert best <= BuiltIn().certify(replace(system, slopes=(0.0, 1.0))).bound * (1 + 1e-5)
