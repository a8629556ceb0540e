"""Random contractive networks: whether rate and Lipschitz constant hold of the numbers as they are stored.

Every parameter of a network has its own scale between 1e-6 and 1e3; float32 and float64, with and without a
feedthrough, up to ``--neurons`` neurons. c of both flows and γ go to the independent checkers, in float64 with a
margin; of the smallest networks the inequalities are factorised in 50 digits as well. Negative controls: S or T of norm
1.05. ``--images`` draws networks on images instead, in one and two dimensions, and judges them as dense matrices of the
map that runs; T is then that of the inputs. ``--small`` takes seconds.
"""

import argparse
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from unittest import mock

import command_line
import mpmath
import torch
from torch import Tensor

from contracting import Certificate, CertificateError, FiringRate, Hopfield, check
from contracting.certificates import system_of
from contracting.flows.base import Flow
from equilibrium import Contractive, EquilibriumLayer, Weights, check_lipschitz, from_weights
from equilibrium.convolution import ConvolutionalContractive, Geometry
from equilibrium.lipschitz import LipschitzCertificate, lipschitz_system
from equilibrium.lipschitz.certificate import Norm
from equilibrium.parameterizations.room import Room

RATES, GAMMAS = (0.0, 0.2, 0.5, 0.9, 0.99), (0.01, 0.3, 1.0, 5.0, 300.0)
# image, border, stride, pool: odd and even grids, and kernels that wrap around
SHAPES = [((2, 4), 1, 1, 2), ((4, 2), 1, 2, 1), ((4, 4), 0, 1, 2), ((6,), 1, 2, 1), ((9,), 0, 3, 2), ((3, 5), 0, 1, 1)]
SMALLEST = 4  # So many neurons are few enough for 50 digits, in which
MOST_EXACT = 500  # so many networks are proved at most: each takes some 10 ms.
SMALLEST_IMAGES, MOST_EXACT_IMAGES = 12, 30  # The same of networks on images, each of which takes some 0.1 s.


def drawn(seed: int, most: int, *, low: float = -6.0, high: float = 3.0) -> Contractive:
    """A network of a random size, every parameter of which has a random scale of its own."""
    torch.manual_seed(seed)
    inputs, neurons, outputs = (int(torch.randint(1, n + 1, ())) for n in (4, most, 4))
    free = Contractive(
        inputs, neurons, outputs, contraction_rate=RATES[seed % 5], lipschitz=GAMMAS[seed // 5 % 5],
        feedthrough=seed % 3 == 0, dtype=(torch.float32, torch.float64)[seed % 2],
    )  # fmt: skip
    with torch.no_grad():
        for parameter in free.parameters():
            scale = 10 ** torch.empty(()).uniform_(low, high)
            parameter.copy_(scale * torch.randn(parameter.shape))
    return free


def drawn_images(seed: int, *, low: float = -6.0, high: float = 3.0, **options: object) -> ConvolutionalContractive:
    """A small network on images, every parameter of which has a random scale of its own."""
    torch.manual_seed(seed)
    image, border, stride, pool = SHAPES[seed % len(SHAPES)]
    geometry = Geometry(
        in_channels=1 + seed % 2, channels=1 + seed // 2 % 3, image=image, border=border, stride=stride, pool=pool
    )
    settings: dict[str, object] = {
        "contraction_rate": (0.0, 0.2, 0.5, 0.9)[seed % 4],
        "lipschitz": (0.01, 1.0, 30.0)[seed // 4 % 3],
        "kernel_size": (3, 9)[seed // 3 % 2],
        "dtype": (torch.float32, torch.float64)[seed // 2 % 2],
    }
    free = ConvolutionalContractive(geometry, 3, **{**settings, **options})
    with torch.no_grad():
        for parameter in free.parameters():
            parameter.copy_(10 ** torch.empty(()).uniform_(low, high) * torch.randn(parameter.shape))
    return free


@torch.no_grad()
def as_matrices(free: Contractive | ConvolutionalContractive) -> Weights:
    """The stored numbers as one dense network; of images in float64, W, U and W_o column by column as applied."""
    weights = free.explicit()
    if isinstance(weights, Weights):
        return weights
    P = weights.contraction_map
    P = P.with_tensors([tensor.double() for tensor in P.tensors()])
    exact = weights.double().dense()
    return replace(exact, contraction_rate=weights.contraction_rate, contraction_matrix=P.to_dense())


@torch.no_grad()
def refused(free: Contractive | ConvolutionalContractive) -> list[str]:
    """Which promises the checkers do not prove of the stored numbers: the rate of either flow, and γ."""
    weights = as_matrices(free)
    return unproved(EquilibriumLayer(free) if isinstance(free, Contractive) else from_weights(weights), weights)


@torch.no_grad()
def unproved(layer: EquilibriumLayer, weights: Weights) -> list[str]:
    """Which promises of these weights the checkers do not prove of the layer that has them."""
    missing = []

    def tried(name: str, prove: object) -> None:
        try:
            prove()  # type: ignore[operator]
        except CertificateError:
            missing.append(name)

    flows: tuple[tuple[Flow, object], ...] = (
        (FiringRate(), weights.firing_rate_metric), (Hopfield(), weights.hopfield_metric),
    )  # fmt: skip
    for flow, metric in flows:
        if metric is None:
            missing.append(flow.__class__.__name__)
            continue
        system = system_of(layer.flow(flow))
        claim = Certificate(
            rate=weights.contraction_rate, metric=metric, multiplier=weights.metric.weights.double(), slopes=(0.0, 1.0),
            method="parameterisation", flow=system.name, margin=0.0,
        )  # fmt: skip
        tried(flow.__class__.__name__, lambda claim=claim, system=system: check(claim, system))
    if weights.lipschitz is not None:
        gamma = float(weights.lipschitz)
        certificate = LipschitzCertificate(
            bound=gamma, norm=Norm.L2, method="parameterisation", slopes=(0.0, 1.0), margin=0.0,
            multiplier=gamma * weights.metric.weights.double(),
        )  # fmt: skip
        tried("γ", lambda: check_lipschitz(certificate, lipschitz_system(layer)))
    return missing


def exact_margins(weights: Weights) -> tuple[float, float]:
    """The least pivots of the inequalities of c and γ in 50 digits, relative to the diagonal; ≤ 0 where they fail."""
    with mpmath.workdps(50):
        W, U, C, P, lam = (
            mpmath.matrix(t.detach().double().tolist())
            for t in (
                weights.state.to_dense(), weights.input, weights.output, weights.contraction_matrix,
                torch.diag(weights.metric.weights),
            )
        )  # fmt: skip
        c, gamma = mpmath.mpf(weights.contraction_rate), mpmath.mpf(float(weights.lipschitz))
        D = mpmath.zeros(C.rows, U.cols)
        if weights.feedthrough is not None:
            D = mpmath.matrix(weights.feedthrough.detach().double().tolist())
        across = P + W.T * lam
        rate = _stacked(2 * (1 - c) * P, -across, 2 * lam)
        corner = 2 * lam - lam * W - W.T * lam - C.T * C / gamma
        bound = _stacked(corner, -(lam * U + C.T * D / gamma), gamma * mpmath.eye(U.cols) - D.T * D / gamma)
        return _least_pivot(rate), _least_pivot(bound)


def _stacked(A: mpmath.matrix, B: mpmath.matrix, C: mpmath.matrix) -> mpmath.matrix:
    n, total = A.rows, A.rows + C.rows
    whole = mpmath.zeros(total)
    for i in range(total):
        for j in range(total):
            if i < n:
                whole[i, j] = A[i, j] if j < n else B[i, j - n]
            else:
                whole[i, j] = B[j, i - n] if j < n else C[i - n, j - n]
    return whole


def _least_pivot(matrix: mpmath.matrix) -> float:
    """The least pivot of Gaussian elimination over the diagonal entry it started from."""
    work, least = matrix.copy(), mpmath.inf
    for k in range(work.rows):
        least = min(least, work[k, k] / abs(matrix[k, k]))
        if not work[k, k] > 0:
            return float(least)
        for i in range(k + 1, work.rows):
            factor = work[i, k] / work[k, k]
            for j in range(k, work.rows):
                work[i, j] -= factor * work[k, j]
    return float(least)


@contextmanager
def outside(free: Contractive | ConvolutionalContractive, which: str) -> Iterator[None]:
    """Within it S, or T, of this network has norm 1.05, in as many directions as it has."""
    original, seen = Room.ball, []

    def larger(room: Room, X: Tensor) -> Tensor:
        inside = original(room, X)
        seen.append(X)
        of_S = X is free.S if isinstance(free, Contractive) else len(seen) == 1  # of images its symbol, before T's
        if of_S != (which == "S"):
            return inside
        left, _, right = torch.linalg.svd(inside, full_matrices=False)
        return 1.05 * left @ right

    with mock.patch.object(Room, "ball", larger):
        yield


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--draws", type=command_line.whole, default=10_000)
    parser.add_argument("--neurons", type=command_line.whole, default=10)
    parser.add_argument("--images", action="store_true", help="networks on images, of sizes of their own")
    parser.add_argument("--small", action="store_true", help="100 networks only")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    draws = 100 if options.small else options.draws
    smallest, most = (SMALLEST_IMAGES, MOST_EXACT_IMAGES) if options.images else (SMALLEST, MOST_EXACT)

    def network(seed: int, **scales: float) -> Contractive | ConvolutionalContractive:
        return drawn_images(seed, **scales) if options.images else drawn(seed, options.neurons, **scales)

    failed: Counter[str] = Counter()
    pivots, exact = [1.0, 1.0], 0
    for seed in range(draws):
        free = network(seed)
        failed.update(refused(free))
        if exact < most and (weights := as_matrices(free)).hidden_features <= smallest:
            exact += 1
            pivots = [min(pair) for pair in zip(pivots, exact_margins(weights), strict=True)]
    found = ", ".join(f"{failed[name]} of {name}" for name in ("FiringRate", "Hopfield", "γ"))
    print(f"{draws} networks: not proved by the checkers {found}")
    print(f"{exact} of them in 50 digits: least pivot of c {pivots[0]:.2e}, of γ {pivots[1]:.2e} of the diagonal")
    for which in ("S", "T"):
        # within a border of zeros not every T of norm 1.05 is outside
        controls = range(4, draws, 12) if options.images else range(0, draws, 10)
        caught = 0
        for seed in controls:
            free = network(seed, low=-1, high=1)
            with outside(free, which):
                try:
                    caught += bool(refused(free))
                except torch.linalg.LinAlgError:  # not even Condition 1 is left
                    caught += 1
        print(f"‖{which}‖ = 1.05: {caught} of {len(controls)} refused")


if __name__ == "__main__":
    command_line.run(main)
