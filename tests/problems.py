"""Problems whose equilibrium is known by other means than the solvers under test."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache

import mpmath
import torch
from torch import Tensor

from contracting.activations.base import Activation
from contracting.activations.catalogue import Identity, LeakyReLU, ReLU, Tanh
from contracting.activations.clamped import Clamped, zero_border
from contracting.maps.base import LinearMap
from contracting.maps.convolution import CircularConvolution
from contracting.maps.dense import Dense
from contracting.maps.frequencies import centred_sum, diagonal_kernel, gram, over_space, transposed
from contracting.maps.minus_gram import MinusGram, Rows
from contracting.maps.per_neuron import Scaled
from contracting.maps.polyphase import blocks, phases
from contracting.metrics import WeightedL2
from contracting.problem import EquilibriumProblem
from equilibrium import LBEN


@dataclass(frozen=True, kw_only=True)
class KnownProblem:
    """A problem, its exact equilibrium, and what makes it hard."""

    name: str
    make: Callable[[], tuple[EquilibriumProblem, Tensor]]
    hard_for_explicit: bool = False
    self_adjoint: bool = False

    def __str__(self) -> str:
        return self.name


def monotone_weight(
    n: int,
    *,
    seed: int,
    skew: float = 1.0,
    monotonicity: float = 1.0,
    spread: float = 0.0,
    scale: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """W and Λ with λmin(sym Ã) = ``monotonicity`` exactly, ‖skew part‖ = ``skew``, and ψ in ±``spread``."""
    generator = torch.Generator().manual_seed(seed)
    V = torch.randn(n, n, generator=generator, dtype=torch.float64)
    values, basis = torch.linalg.eigh(V @ V.mT)
    values = monotonicity + scale * (values - values[0]) / max(float(values[-1] - values[0]), 1e-12)
    S = torch.randn(n, n, generator=generator, dtype=torch.float64)
    K = S - S.mT
    size = float(torch.linalg.matrix_norm(K, 2))
    K = K * (skew / size) if size > 0 else K
    A = basis @ torch.diag(values) @ basis.mT + K
    psi = spread * (2 * torch.rand(n, generator=generator, dtype=torch.float64) - 1)
    lam = torch.exp(-psi)
    root = lam.sqrt()
    # Ã = Λ^½AΛ^−½ is what was built; undo the scaling
    return torch.eye(n, dtype=torch.float64) - A / root[:, None] * root[None, :], lam


def planted(
    activation: Activation, W: Tensor, lam: Tensor | None, *, batch: int, seed: int
) -> tuple[EquilibriumProblem, Tensor]:
    """Choose v, set z = σ(v), and q = v − Wz: then z is the equilibrium, exactly."""
    generator = torch.Generator().manual_seed(seed)
    v = torch.randn(batch, W.shape[0], generator=generator, dtype=torch.float64).to(W.dtype)
    z = activation(v)
    problem = EquilibriumProblem(
        linear=Dense(W), q=v - z @ W.mT, activation=activation, metric=None if lam is None else WeightedL2(lam)
    )
    return problem, z


def _planted(
    activation: Activation, n: int, seed: int, **shape: float
) -> Callable[[], tuple[EquilibriumProblem, Tensor]]:
    def make() -> tuple[EquilibriumProblem, Tensor]:
        W, lam = monotone_weight(n, seed=seed, **shape)
        return planted(activation, W, lam, batch=4, seed=seed + 1)

    return make


def perturbed(activation: Activation, lipschitz: float, *, scale: float = 1.0, rows: int = 100) -> EquilibriumProblem:
    """A layer far from its initialisation, κ = 1e6 for a Lipschitz constant of 1e-5, and large inputs."""
    torch.manual_seed(0)
    layer = LBEN(4, 39, 2, lipschitz=lipschitz, activation=activation, dtype=torch.float64)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter += 0.5 * torch.randn_like(parameter)
        return layer.problem(10 * scale * torch.randn(rows, 4, dtype=torch.float64))


def _linear() -> tuple[EquilibriumProblem, Tensor]:
    """σ = identity: z = (I − W)⁻¹q in closed form."""
    W, lam = monotone_weight(7, seed=3, skew=2.0)
    q = torch.randn(4, 7, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    z = torch.linalg.solve(torch.eye(7, dtype=torch.float64) - W, q.mT).mT
    return EquilibriumProblem(linear=Dense(W), q=q, activation=Identity(), metric=WeightedL2(lam)), z


def _tanh_by_mpmath() -> tuple[EquilibriumProblem, Tensor]:
    """σ = tanh, solved by Newton's method in 40 digits."""
    W, lam = monotone_weight(3, seed=5, skew=1.5)
    q = torch.tensor([[0.7, -1.2, 2.0], [0.0, 0.3, -0.1]], dtype=torch.float64)
    rows = []
    with mpmath.workdps(40):
        M = mpmath.matrix(W.tolist())
        for row in q.tolist():

            def residual(*z: mpmath.mpf, row: list[float] = row) -> list[mpmath.mpf]:
                v = M * mpmath.matrix(z)
                return [z[i] - mpmath.tanh(v[i] + row[i]) for i in range(3)]

            root = mpmath.findroot(residual, [0, 0, 0])
            rows.append([float(root[i]) for i in range(3)])
    z = torch.tensor(rows, dtype=torch.float64)
    return EquilibriumProblem(linear=Dense(W), q=q, activation=Tanh(), metric=WeightedL2(lam)), z


def _on_images(metric: str) -> Callable[[], tuple[EquilibriumProblem, Tensor]]:
    """ReLU with a border of zeros on a 4×3 torus of 2 channels, in a metric per channel or per position."""

    def make() -> tuple[EquilibriumProblem, Tensor]:
        grid, channels = (4, 3), 2
        generator = torch.Generator().manual_seed(100)
        A, B = (torch.randn(channels, channels, 3, 3, generator=generator, dtype=torch.float64) / 6 for _ in range(2))
        half = diagonal_kernel(torch.full((channels,), 0.5, dtype=torch.float64), 2)
        inner = CircularConvolution(centred_sum([half, -gram(A), B, -transposed(B)]), grid=grid)  # I − V ⪰ I/2
        varies = metric == "position"
        spread = 0.4 * torch.rand(inner.size if varies else channels, generator=generator, dtype=torch.float64)
        psi = spread.exp() if varies else over_space(spread.exp(), grid)
        linear: LinearMap = Scaled(inner, psi, torch.ones_like(psi))
        if not varies:
            kernel = inner.combined(-1.0, 1.0).kernel * spread.exp()[:, None, None, None]  # Ψ(I − V)
            linear = CircularConvolution(kernel, grid=grid).combined(-1.0, 1.0)
        activation = zero_border(ReLU(), channels=channels, grid=grid, border=1)
        v = torch.randn(3, linear.size, generator=generator, dtype=torch.float64)
        z = activation(v)
        problem = EquilibriumProblem(
            linear=linear, q=v - linear.apply(z), activation=activation, metric=WeightedL2(1 / psi)
        )
        return problem, z

    return make


def _low_rank() -> tuple[EquilibriumProblem, Tensor]:
    """ReLU with a border of zeros and a readout inside W, its rank 2 and its bounds those that need no matrix."""
    problem, _ = _on_images("position")()
    assert isinstance(problem.linear, Scaled)
    generator = torch.Generator().manual_seed(120)
    R = torch.randn(problem.size, 2, generator=generator, dtype=torch.float64) / 4
    inner = MinusGram(problem.linear.inner, Rows(R.mT), exact_up_to=0)
    linear = Scaled(inner, problem.linear.left, problem.linear.right)
    v = torch.randn(3, linear.size, generator=generator, dtype=torch.float64)
    z = problem.activation(v)
    return replace(problem, linear=linear, q=v - linear.apply(z)), z


def _resolutions() -> tuple[EquilibriumProblem, Tensor]:
    """ReLU with clamped entries on two resolutions, 4×6 and 2×3, coupled by a convolution of stride two."""
    grid, counts = (2, 3), (8, 1)
    generator = torch.Generator().manual_seed(110)

    def kernel(out: int, into: int) -> Tensor:
        return torch.randn(out, into, 3, 3, generator=generator, dtype=torch.float64) / 6

    def skewed(fine: Tensor, down: Tensor | None, coarse: Tensor) -> Tensor:
        coupling = None if down is None else phases(down, out=1, into=2, stride=2)
        return blocks([[phases(fine, out=2, into=2, stride=1), None], [coupling, coarse]], counts, counts)

    A, B = skewed(kernel(2, 2), kernel(1, 2), kernel(1, 1)), skewed(kernel(2, 2), None, kernel(1, 1))
    half = diagonal_kernel(torch.full((sum(counts),), 0.5, dtype=torch.float64), 2)
    linear = CircularConvolution(centred_sum([half, -gram(A), B, -transposed(B)]), grid=grid)  # I − W ⪰ I/2
    activation = Clamped(inner=ReLU(), free=torch.arange(linear.size).remainder(5) > 0)
    v = torch.randn(3, linear.size, generator=generator, dtype=torch.float64)
    z = activation(v)
    metric = WeightedL2.identity(linear.size, dtype=torch.float64)
    return EquilibriumProblem(linear=linear, q=v - linear.apply(z), activation=activation, metric=metric), z


_KNOWN = (
    KnownProblem(name="linear", make=_linear),
    KnownProblem(name="tanh in 40 digits", make=_tanh_by_mpmath),
    KnownProblem(name="ReLU", make=_planted(ReLU(), 6, 10)),
    KnownProblem(name="ReLU, symmetric", make=_planted(ReLU(), 6, 20, skew=0.0, scale=4.0), self_adjoint=True),
    KnownProblem(name="n = 1", make=_planted(ReLU(), 1, 30), self_adjoint=True),
    KnownProblem(name="leaky ReLU", make=_planted(LeakyReLU(negative_slope=0.2), 6, 40)),
    KnownProblem(name="ReLU, strong skew", make=_planted(ReLU(), 6, 50, skew=5.0), hard_for_explicit=True),
    KnownProblem(name="tanh, strong skew", make=_planted(Tanh(), 6, 60, skew=5.0), hard_for_explicit=True),
    KnownProblem(name="ReLU, nearly singular", make=_planted(ReLU(), 6, 70, monotonicity=1e-3), hard_for_explicit=True),
    KnownProblem(name="ReLU, ill-scaled metric", make=_planted(ReLU(), 6, 80, spread=3.0)),
    KnownProblem(name="ReLU, n = 300", make=_planted(ReLU(), 300, 90, skew=2.0, scale=3.0)),
    KnownProblem(name="convolution, metric per channel", make=_on_images("channel")),
    KnownProblem(name="convolution, metric per position", make=_on_images("position")),
    KnownProblem(name="convolution and a readout, metric per position", make=_low_rank),
    KnownProblem(name="convolution, several resolutions", make=_resolutions),
)
# Each is made once, so that what is known of its weight is not computed again for every method.
KNOWN = tuple(replace(known, make=cache(known.make)) for known in _KNOWN)
