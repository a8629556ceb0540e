"""Certified Lipschitz constants: every one is proved again, none is vacuous, broken ones are refused."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from contracting.certificates.records import CertificateError
from contracting.errors import InputError, PreconditionError
from equilibrium import LBEN, Monotone, Unconstrained, Weights, explicit_weights
from equilibrium.lipschitz import (
    BuiltIn,
    Elementwise,
    FirstOrder,
    InteriorPoint,
    LipschitzCertificate,
    LipschitzSystem,
    MatrixInequality,
    Norm,
    certified_lipschitz,
    check_lipschitz,
    lipschitz_system,
    pairwise_lipschitz,
)


def random_weights(
    seed: int,
    sizes: tuple[int, int, int] = (4, 6, 3),
    *,
    gamma: float | None = 1.0,
    feedthrough: bool = False,
    size: float = 0.5,
    epsilon: float = 0.1,
) -> Weights:
    torch.manual_seed(seed)
    free = Monotone(*sizes, lipschitz=gamma, feedthrough=feedthrough, epsilon=epsilon, dtype=torch.float64)
    with torch.no_grad():
        for parameter in free.parameters():
            parameter.copy_(size * torch.randn_like(parameter))
        return free.explicit()


def worst_gain(system: LipschitzSystem, ends: tuple[float, float] = (0.0, 1.0)) -> Tensor:
    """The gains C(I − JW)⁻¹JU + D of all slope patterns: (2ⁿ, out, in)."""
    J = torch.tensor(list(itertools.product(ends, repeat=system.size)), dtype=torch.float64)
    identity = torch.eye(system.size, dtype=torch.float64)
    z = torch.linalg.solve(identity - J[:, :, None] * system.W, J[:, :, None] * system.U)
    return system.C @ z + system.D


def lmi_eigenvalue(system: LipschitzSystem, certificate: LipschitzCertificate) -> float:
    """λmin of the inequality in its block form, relative to its entries: written apart from the checker."""
    assert certificate.multiplier is not None
    system = system.in_units(certificate.units)
    lam, W, U, C, D = torch.diag(certificate.multiplier), system.W, system.U, system.C, system.D
    corner = 2 * lam - lam @ W - W.mT @ lam - C.mT @ C
    off = -(lam @ U + C.mT @ D)
    rho = (certificate.bound / 2.0 ** sum(certificate.units)) ** 2 * torch.eye(U.shape[1], dtype=torch.float64)
    M = torch.cat([torch.cat([corner, off], 1), torch.cat([off.mT, rho - D.mT @ D], 1)])
    return float(torch.linalg.eigvalsh(M)[0] / M.abs().max())


@pytest.mark.parametrize("feedthrough", [False, True])
@pytest.mark.parametrize("gamma", [0.1, 1.0, 20.0])
def test_the_post_hoc_bound_is_at_most_the_built_in_one(gamma: float, feedthrough: bool) -> None:
    for seed in range(4):
        system = lipschitz_system(random_weights(seed, gamma=gamma, feedthrough=feedthrough))
        certificate = InteriorPoint().certify(system)
        assert BuiltIn().certify(system).bound == pytest.approx(gamma, rel=1e-6)
        assert certificate.bound <= gamma
        assert lmi_eigenvalue(system, certificate) > 0
        assert float(torch.linalg.matrix_norm(worst_gain(system), 2).max()) <= certificate.bound


@pytest.mark.parametrize("sizes", [(3, 5, 2), (10, 16, 4), (1, 12, 1)], ids=str)
@pytest.mark.parametrize("feedthrough", [False, True])
def test_three_finders_agree(sizes: tuple[int, int, int], feedthrough: bool) -> None:
    pytest.importorskip("clarabel")
    for seed in range(2):
        system = lipschitz_system(random_weights(seed, sizes, feedthrough=feedthrough, size=0.4))
        reference = MatrixInequality().certify(system).bound
        assert InteriorPoint().certify(system).bound == pytest.approx(reference, rel=1e-5)
        assert FirstOrder().certify(system).bound == pytest.approx(reference, rel=1e-3)


def test_first_order_is_within_a_thousandth_of_the_optimum_at_sixty_neurons() -> None:
    system = lipschitz_system(random_weights(0, (100, 60, 10), size=0.2))
    assert FirstOrder().certify(system).bound <= 1.001 * InteriorPoint().certify(system).bound


@pytest.mark.parametrize("steps", [0, 1, 7, 40])
def test_first_order_is_a_certificate_wherever_it_stops(steps: int) -> None:
    system = lipschitz_system(random_weights(3, feedthrough=True))
    certificate = FirstOrder(steps=steps).certify(system)
    assert check_lipschitz(certificate, system) > 0
    assert certificate.bound <= 1.0 + 1e-6
    assert certificate.bound <= FirstOrder(steps=0).certify(system).bound


@pytest.mark.parametrize("slopes", [(0.0, 0.25), (0.1, 1.0), (0.2, 0.7)], ids=str)
@pytest.mark.parametrize("finder", [FirstOrder(steps=100), InteriorPoint(), MatrixInequality()], ids=repr)
def test_other_slopes_are_used_and_covered(
    slopes: tuple[float, float], finder: FirstOrder | InteriorPoint | MatrixInequality
) -> None:
    for seed in range(3):
        wide = lipschitz_system(random_weights(seed, (3, 6, 2), feedthrough=seed == 2))
        system = replace(wide, slopes=slopes)
        certificate = finder.certify(system)
        assert float(torch.linalg.matrix_norm(worst_gain(system, slopes), 2).max()) <= certificate.bound
        assert certificate.bound <= finder.certify(wide).bound * (1 + 1e-5)
        with pytest.raises(CertificateError):
            check_lipschitz(certificate, wide)


def test_negative_controls_fail_the_checker() -> None:
    system = lipschitz_system(random_weights(1))
    good = InteriorPoint().certify(system)
    assert good.multiplier is not None
    assert check_lipschitz(good, system) > 0
    broken = [
        replace(good, bound=good.bound * (1 - 1e-4)),
        replace(good, multiplier=-good.multiplier),
        replace(good, multiplier=good.multiplier * float("nan")),
        replace(good, multiplier=good.multiplier[:-1]),
        replace(good, multiplier=None),
        replace(good, norm=Norm.LINF),
        replace(good, slopes=(0.0, 0.5)),
        replace(good, bound=float("nan")),
    ]
    for certificate in broken:
        with pytest.raises(CertificateError):
            check_lipschitz(certificate, system)
    for other in (
        replace(system, W=system.W + 0.05 * torch.randn(6, 6, dtype=torch.float64)),
        replace(system, U=1.01 * system.U),
        replace(system, C=1.01 * system.C),
        replace(system, D=system.D + 0.1),
        replace(system, errors=(system.errors[0] + 0.1, *system.errors[1:])),
    ):
        with pytest.raises(CertificateError):
            check_lipschitz(good, other)


def test_a_constant_below_the_truth_is_never_accepted() -> None:
    """One neuron, where everything is known: z = relu(wz + ux), y = cz has gain |c||u|/(1 − w)."""
    one = torch.ones(1, 1, dtype=torch.float64)
    for w in (-3.0, 0.0, 0.9):
        system = lipschitz_system(explicit_weights(w * one, 2 * one, 3 * one))
        truth = 6 / (1 - w)
        assert InteriorPoint().certify(system).bound == pytest.approx(truth, rel=1e-5)
        assert Elementwise().certify(system).bound == pytest.approx(truth, rel=1e-9)
        for lam in torch.logspace(-3, 3, 61, dtype=torch.float64):
            claim = LipschitzCertificate(
                bound=truth * (1 - 1e-9),
                norm=Norm.L2,
                method="a claim",
                slopes=(0.0, 1.0),
                margin=0.0,
                multiplier=lam[None],
            )
            with pytest.raises(CertificateError):
                check_lipschitz(claim, system)


def elementwise_system(seed: int) -> LipschitzSystem:
    generator = torch.Generator().manual_seed(seed)
    W, U, C, D = (
        torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((6, 6), (6, 4), (3, 6), (3, 4))
    )
    W = 0.7 * W / W.abs().sum(1).max() - 0.3 * torch.eye(6, dtype=torch.float64)
    return lipschitz_system(explicit_weights(W, U, C, feedthrough=D))


def test_elementwise_bounds_hold_in_every_norm_and_for_every_pair() -> None:
    for seed in range(30):
        system = elementwise_system(seed)
        gains = worst_gain(system)
        for norm, order in ((Norm.L1, 1), (Norm.L2, 2), (Norm.LINF, float("inf"))):
            certificate = Elementwise(norm=norm).certify(system)
            truth = float(torch.linalg.matrix_norm(gains, order).max())
            assert truth <= certificate.bound < 6 * truth
            assert certificate.entrywise is not None and bool((gains.abs() <= certificate.entrywise).all())
            assert check_lipschitz(certificate, system) > 0
            for broken in (
                replace(certificate, bound=certificate.bound * (1 - 1e-9)),
                replace(certificate, state_gains=0.99 * certificate.state_gains),
                replace(certificate, entrywise=0.99 * certificate.entrywise),
            ):
                with pytest.raises(CertificateError):
                    check_lipschitz(broken, system)


def test_elementwise_is_exact_on_a_monotone_network() -> None:
    W, U, C = (torch.rand(*s, dtype=torch.float64) for s in ((5, 5), (5, 3), (2, 5)))
    system = lipschitz_system(explicit_weights(0.15 * W, U, C))
    truth = C @ torch.linalg.solve(torch.eye(5, dtype=torch.float64) - 0.15 * W, U)
    for norm, order in ((Norm.L1, 1), (Norm.L2, 2), (Norm.LINF, float("inf"))):
        truth_norm = float(torch.linalg.matrix_norm(truth, order))
        assert Elementwise(norm=norm).certify(system).bound == pytest.approx(truth_norm, rel=1e-9)


def test_elementwise_refuses_what_it_cannot_do_and_single_rows_go_on() -> None:
    W = torch.tensor([[0.0, 2.0], [-2.0, 0.0]], dtype=torch.float64)
    weights = explicit_weights(W, torch.eye(2, dtype=torch.float64), torch.eye(2, dtype=torch.float64))
    with pytest.raises(PreconditionError, match="spectral abscissa"):
        Elementwise(norm=Norm.LINF).certify(lipschitz_system(weights))
    euclidean = certified_lipschitz(weights).bound
    assert euclidean < 2
    for norm, order in ((Norm.L1, 1), (Norm.LINF, float("inf"))):
        truth = float(torch.linalg.matrix_norm(worst_gain(lipschitz_system(weights)), order).max())
        assert truth <= certified_lipschitz(weights, norm=norm).bound <= 2**0.5 * euclidean


def test_linear_maps_become_part_of_the_weights() -> None:
    weights = random_weights(5, feedthrough=True)
    before, after = nn.Linear(5, 4, dtype=torch.float64), nn.Linear(3, 2, dtype=torch.float64)
    whole = certified_lipschitz(weights, preceding=before, following=after)
    norms = [float(torch.linalg.matrix_norm(linear.weight.detach(), 2)) for linear in (before, after)]
    assert whole.bound < norms[0] * norms[1] * certified_lipschitz(weights).bound
    N, R = before.weight.detach(), after.weight.detach()
    assert weights.feedthrough is not None
    D = R @ weights.feedthrough @ N
    by_hand = explicit_weights(weights.state.to_dense(), weights.input @ N, R @ weights.output, feedthrough=D)
    assert certified_lipschitz(by_hand).bound == pytest.approx(whole.bound, rel=1e-5)
    scale = torch.eye(4, dtype=torch.float64) / 0.3081
    assert certified_lipschitz(weights, preceding=scale).bound == pytest.approx(
        certified_lipschitz(weights).bound / 0.3081, rel=1e-5
    )


def test_pairs_of_outputs_are_tighter_than_the_square_root_of_two() -> None:
    weights = random_weights(7, (6, 8, 4))
    pairwise = pairwise_lipschitz(weights)
    system = lipschitz_system(weights)
    gains = worst_gain(system)
    assert len(pairwise.pairs) == len(pairwise.certificates) == 6
    for (i, j), certificate in zip(pairwise.pairs, pairwise.certificates, strict=True):
        truth = float(torch.linalg.vector_norm(gains[:, i] - gains[:, j], dim=-1).max())
        assert truth <= pairwise.bounds[i, j] == pairwise.bounds[j, i] == certificate.bound
        assert certificate.bound <= 2**0.5 * pairwise.whole.bound * (1 + 1e-6)
        row = torch.zeros(1, 4, dtype=torch.float64)
        row[0, i], row[0, j] = 1, -1
        assert check_lipschitz(certificate, system.with_output(row)) > 0
    off = ~torch.eye(4, dtype=torch.bool)
    assert float(pairwise.bounds[off].mean()) < 0.9 * 2**0.5 * pairwise.whole.bound


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_layer_is_certified_as_it_runs(dtype: torch.dtype) -> None:
    layer = LBEN(5, 10, 3, lipschitz=0.7, dtype=dtype)
    certificate = certified_lipschitz(layer)
    assert certificate.bound <= 0.7 * (1 + 1e-6)
    assert "slopes in [0, 1]" in certificate.assumption and "0.7" not in certificate.method
    sigmoid = LBEN(5, 10, 3, lipschitz=0.7, dtype=dtype, activation=nn.Sigmoid())
    sigmoid.parameterization.load_state_dict(layer.parameterization.state_dict())
    assert certified_lipschitz(sigmoid).bound < 0.5 * certificate.bound


def test_nothing_is_certified_for_weights_that_are_not_well_posed() -> None:
    free = Unconstrained(4, 6, 3, dtype=torch.float64)
    with torch.no_grad():
        free.W.copy_(2 * torch.eye(6))
        weights = free.explicit()
        with pytest.raises(PreconditionError, match="Condition 1"):
            certified_lipschitz(weights)
        free.reset_parameters()
        assert certified_lipschitz(free.explicit()).bound > 0


def test_a_metric_is_found_where_the_identity_fails() -> None:
    W = torch.tensor([[0.0, 100.0], [0.0, 0.0]], dtype=torch.float64)
    identity = torch.eye(2, dtype=torch.float64)
    truth = float(torch.linalg.matrix_norm(identity + W, 2))
    assert truth <= certified_lipschitz(explicit_weights(W, identity, identity)).bound < 1.05 * truth


def test_trivial_maps() -> None:
    zero, one = torch.zeros(2, 2, dtype=torch.float64), torch.eye(2, dtype=torch.float64)
    assert certified_lipschitz(explicit_weights(zero, one, zero)).bound < 1e-6
    assert certified_lipschitz(explicit_weights(zero, zero, one)).bound < 1e-6
    assert certified_lipschitz(explicit_weights(zero, zero, zero, feedthrough=3 * one)).bound == pytest.approx(3)


def test_bad_arguments_are_refused_by_name() -> None:
    weights = random_weights(0)
    with pytest.raises(InputError, match=r"\bmodel\b"):
        certified_lipschitz(nn.Linear(3, 2))  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"\bnorm\b"):
        certified_lipschitz(weights, norm="l2")  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"\bpreceding\b"):
        certified_lipschitz(weights, preceding=torch.ones(3, 3, dtype=torch.float64))
    with pytest.raises(InputError, match=r"\bfollowing\b"):
        certified_lipschitz(weights, following=torch.ones(3, 4, dtype=torch.float64))
    with pytest.raises(InputError, match=r"\bsteps\b"):
        FirstOrder(steps=-1)
    with pytest.raises(PreconditionError, match="built-in"):
        BuiltIn().certify(lipschitz_system(random_weights(0, gamma=None)))
    for finder in (FirstOrder(), InteriorPoint()):
        with pytest.raises(InputError, match=r"\bstart\b"):
            replace(finder, start=torch.ones(2, dtype=torch.float64)).certify(lipschitz_system(weights))


def test_a_learnt_constant_is_read_without_its_gradient() -> None:
    weights = LBEN(4, 6, 3, lipschitz=0.5, learn_lipschitz=True, dtype=torch.float64).weights()
    assert weights.lipschitz is not None and weights.lipschitz.requires_grad
    assert certified_lipschitz(weights).bound <= 0.5


def test_entrywise_constants_of_another_shape_are_not_certified() -> None:
    system = lipschitz_system(explicit_weights(*(0.1 * torch.ones(3, 3, dtype=torch.float64) for _ in range(3))))
    certificate = Elementwise().certify(system)
    assert certificate.entrywise is not None and check_lipschitz(certificate, system) > 0
    with pytest.raises(CertificateError):
        check_lipschitz(replace(certificate, entrywise=certificate.entrywise.amax() * torch.ones(1, 1)), system)


def test_pairs_assume_no_more_slopes_than_every_certificate_allows() -> None:
    layer = LBEN(4, 6, 3, lipschitz=1.0, activation=nn.LeakyReLU(0.2), dtype=torch.float64)
    pairs = pairwise_lipschitz(layer)
    assert all(certificate.slopes == (0.2, 1.0) for certificate in pairs.certificates)
    assert "[0.2, 1]" in replace(pairs, whole=BuiltIn().certify(lipschitz_system(layer))).assumption


def test_pairs_keep_to_the_elementwise_constant_where_that_is_the_best(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(InteriorPoint, "optimum", lambda self, system, lam: 30 * lam)  # a poor one
    eye = torch.eye(2, dtype=torch.float64)
    pairs = pairwise_lipschitz(explicit_weights(0 * eye, eye, eye))
    assert pairs.whole.method == pairs.certificates[0].method == "elementwise"
    assert float(pairs.bounds[0, 1]) == pytest.approx(2**0.5 * pairs.whole.bound, rel=1e-9)
