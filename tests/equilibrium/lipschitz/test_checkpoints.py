"""The Lipschitz-bounded convolutional layouts of the reference code, against matrices written entry by entry."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from contracting.errors import InputError, PreconditionError
from contracting.loop.records import Stop
from contracting.maps.dense import Dense
from contracting.maps.minus_gram import MinusGram
from contracting.maps.per_neuron import Scaled
from equilibrium import ForwardBackward, PeacemanRachford, SemismoothNewton, load_reference
from equilibrium.convolution import ConvolutionalLayer
from equilibrium.lipschitz import (
    BuiltIn,
    PairAscent,
    certified_lipschitz,
    lipschitz_report,
    lipschitz_system,
    pairwise_lipschitz,
)

SHAPES = ["1,C,H,W", "1,1,H,W", "1,C,1,1", "1,1,1,1"]
Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class File:
    """A written file and what it was written from."""

    path: Path
    tensors: Tensors
    normalised: bool
    image: tuple[int, int]
    pool: int
    gamma: float
    epsilon: float = 0.1
    channels: int = 2
    in_channels: int = 1

    @property
    def grid(self) -> tuple[int, int]:
        return self.image[0] + 2, self.image[1] + 2

    def load(self) -> ConvolutionalLayer:
        layer = load_reference(self.path, lipschitz=self.gamma, epsilon=self.epsilon, image=self.image)
        assert isinstance(layer, ConvolutionalLayer)
        return layer


def write(
    folder: Path,
    *,
    seed: int = 0,
    metric: str = "1,C,H,W",
    normalised: bool = True,
    image: tuple[int, int] = (4, 4),
    pool: int = 2,
    gamma: float = 1.0,
    in_channels: int = 1,
    loud: float = 1.0,
    **changes: torch.Tensor,
) -> File:
    """A file of random tensors with the names of LBEN_Lip_Conv or LBEN_Lip_Conv_V2."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    grid, C = (image[0] + 2, image[1] + 2), 2
    sizes = {"1": 1, "C": C, "H": grid[0], "W": grid[1]}
    tensors = {
        "U.weight": loud * draw(C, in_channels, 3, 3) / 2,
        "U.bias": draw(C),
        "A.weight": draw(C, C, 3, 3),
        "B.weight": draw(C, C, 3, 3),
        "psi": 0.5 * draw(*[sizes[name] for name in metric.split(",")]),
        "Wout.weight": loud * draw(3, C * grid[0] * grid[1] // pool**2) / 2,
        "Wout.bias": draw(3),
        "g": draw(1)[0].abs() + 0.5,
    }
    if normalised:
        gains = {"a": draw(1)[0].abs() + 0.3, "b": draw(1)[0], "u": loud * draw(1)[0].abs(), "g": loud * tensors["g"]}
        tensors |= gains
    else:
        tensors["h"] = draw(1)[0]
    tensors |= changes
    path = folder / f"model-{seed}.pt"
    torch.save({f"mon.linear_module.{name}": value for name, value in tensors.items()}, path)
    return File(
        path=path,
        tensors=tensors,
        normalised=normalised,
        image=image,
        pool=pool,
        gamma=gamma,
        in_channels=in_channels,
    )


def correlation(kernel: torch.Tensor, grid: tuple[int, int], where: Callable[[int, int], int | None]) -> torch.Tensor:
    """Σ over taps of kernel[o, c, i, j] at the entry that ``where`` gives for row + i, column + j, entry by entry."""
    H, W = grid
    places = [[where(p, q) for q in range(W + 2)] for p in range(H + 2)]
    size = 1 + max(place for row in places for place in row if place is not None)
    out, into = kernel.shape[:2]
    matrix = torch.zeros(out, H, W, into, size, dtype=torch.float64)
    for p, q, i, j in itertools.product(range(H), range(W), range(3), range(3)):
        place = places[p + i][q + j]
        if place is not None:
            matrix[:, p, q, :, place] += kernel[:, :, i, j]
    return matrix.reshape(out * H * W, into * size)


@dataclass(frozen=True, kw_only=True)
class Matrices:
    """The network of the reference code as matrices."""

    W: torch.Tensor
    U: torch.Tensor
    wrapped: torch.Tensor
    output: torch.Tensor
    bias: torch.Tensor
    output_bias: torch.Tensor
    free: torch.Tensor
    lam: torch.Tensor

    def equilibrium(self, x: torch.Tensor) -> torch.Tensor:
        """By Newton's method on active sets, one row at a time."""
        rows = []
        for q in x @ self.U.mT + self.bias:
            z, identity = torch.zeros_like(q), torch.eye(len(q), dtype=torch.float64)
            for _ in range(100):
                J = ((self.W @ z + q > 0) & self.free).double()
                new = torch.linalg.solve(identity - J[:, None] * self.W, J * q)
                if torch.equal(new, z):
                    break
                z = new
            assert float((z - torch.relu(self.W @ z + q) * self.free).norm()) <= 1e-11 * float(z.norm())
            rows.append(z)
        return torch.stack(rows)


def matrices(file: File) -> Matrices:
    """The formulas of lben.py and of the network around it."""
    t, (H, W), C, size = file.tensors, file.grid, file.channels, file.pool
    A, B = t["A.weight"] / t["A.weight"].norm(), t["B.weight"] / t["B.weight"].norm()
    U, G = t["U.weight"], t["Wout.weight"]
    a, b = (t["a"], t["b"]) if file.normalised else (t["g"], t["h"])
    if file.normalised:
        U, G = t["u"].sqrt() * U / U.norm(), t["g"].sqrt() * G / G.norm()

    def torus(p: int, q: int) -> int:
        return (p - 1) % H * W + (q - 1) % W

    def larger(p: int, q: int) -> int:
        return p * (W + 2) + q

    def inside(p: int, q: int) -> int | None:
        # padded by one zero, then circularly by one
        p, q = (p - 1) % H - 1, (q - 1) % W - 1
        return p * (W - 2) + q if 0 <= p < H - 2 and 0 <= q < W - 2 else None

    Am, Bm = correlation(A, (H, W), torus), correlation(B, (H, W), torus)
    V = correlation(U, (H, W), larger)
    P = torch.zeros(C, H // size, W // size, C, H, W, dtype=torch.float64)
    for c, p, q in itertools.product(range(C), range(H), range(W)):
        P[c, p // size, q // size, c, p, q] = 1 / size**2
    output = G @ P.reshape(-1, C * H * W)
    psi = t["psi"].exp().expand(1, C, H, W).flatten()
    identity = torch.eye(C * H * W, dtype=torch.float64)
    bracket = file.epsilon * identity + a * Am.mT @ Am - b * (Bm - Bm.mT) + output.mT @ output / (2 * file.gamma)
    free = torch.zeros(C, H, W, dtype=torch.bool)
    free[:, 1:-1, 1:-1] = True
    return Matrices(
        W=identity - psi[:, None] * bracket - V @ V.mT / psi / (2 * file.gamma),
        U=correlation(U, (H, W), inside),
        wrapped=correlation(U, (H, W), torus),
        output=output,
        bias=t["U.bias"].repeat_interleave(H * W),
        output_bias=t["Wout.bias"],
        free=free.flatten(),
        lam=1 / psi,
    )


def gain(m: Matrices, U: torch.Tensor, free: torch.Tensor, seed: int, patterns: int = 24) -> float:
    """max over slope patterns J of ‖W_o(I − JW)⁻¹JU‖: all, and random ones improved by single flips."""
    generator, n = torch.Generator().manual_seed(seed), len(m.W)
    share = torch.rand(patterns, 1, generator=generator, dtype=torch.float64)
    J = (torch.rand(patterns, n, generator=generator, dtype=torch.float64) < share).double()
    J[0] = 1
    identity = torch.eye(n, dtype=torch.float64)

    def gains(J: torch.Tensor) -> torch.Tensor:
        J = (J * free)[:, :, None]
        return torch.linalg.matrix_norm(m.output @ torch.linalg.solve(identity - J * m.W, J * U), 2)

    value = gains(J)
    for _ in range(6):
        flips = torch.rand(J.shape, generator=generator, dtype=torch.float64) < 2.0 / n
        flipped = (J - flips.double()).abs()
        new = gains(flipped)
        J, value = torch.where((new > value)[:, None], flipped, J), torch.maximum(value, new)
    return float(value.max())


CASES = [(True, psi) for psi in SHAPES] + [(False, "C,H,W")]


@pytest.mark.parametrize(("normalised", "psi"), CASES)
@pytest.mark.parametrize(
    ("image", "pool", "in_channels"), [((4, 4), 2, 1), ((4, 4), 3, 2), ((3, 4), 1, 1)], ids=str
)
def test_the_layer_is_the_network_of_the_reference_code(
    normalised: bool, psi: str, image: tuple[int, int], pool: int, in_channels: int, tmp_path: Path
) -> None:
    seed = pool
    file = write(
        tmp_path, seed=seed, metric=psi, normalised=normalised, image=image, pool=pool, in_channels=in_channels
    )
    m, layer = matrices(file), file.load()
    weights = layer.weights()
    x = torch.randn(3, layer.in_features, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    z = m.equilibrium(x)
    y = z @ m.output.mT + m.output_bias
    with torch.no_grad():
        # the couplings of opposite borders, which are held at zero, are all that may differ
        W = weights.state.to_dense()
        assert float((W - m.W)[m.free][:, m.free].abs().max()) <= 1e-10
        for method in (None, PeacemanRachford(), ForwardBackward(), SemismoothNewton()):
            solution = layer.solve(x, method, stop=Stop(rtol=1e-10))
            assert float((solution.z - z).norm(dim=-1).max()) <= 1e-8 * float(z.norm(dim=-1).max())
        found = weights.readout(layer.solve(x, stop=Stop(rtol=1e-11)).z, x)
        assert float((found - y).norm(dim=-1).max()) <= 1e-8
        assert torch.allclose(weights.dense().input, m.U, atol=1e-12)
        assert torch.allclose(weights.output_matrix, m.output, atol=1e-12)
    assert weights.metric is not None and torch.allclose(weights.metric.weights, m.lam, rtol=1e-12)


def test_the_bound_of_the_file_is_that_of_the_map_that_is_applied(tmp_path: Path) -> None:
    """W and U of the reference code: γ holds for its network, in which the image is padded with zeros first."""
    attained, exceeded = [], []
    for seed in range(40):
        psi = "C,H,W" if seed % 2 else SHAPES[seed // 2 % 4]
        file = write(
            tmp_path, seed=seed, metric=psi, normalised=seed % 2 == 0, gamma=10.0 ** (seed % 3 - 1), image=(3, 3),
            pool=1, loud=4.0,
        )  # fmt: skip
        m = matrices(file)
        weights = file.load().weights()
        assert weights.lipschitz is not None and float(weights.lipschitz) == file.gamma
        attained.append(gain(m, m.U, m.free, seed) / file.gamma)
        # what is certified is the inequality with the weights that are applied, theirs and ours
        lam = torch.diag(m.lam)
        for W in (m.W, weights.state.to_dense().detach()):
            excess = 2 * lam - lam @ W - W.mT @ lam - (m.output.mT @ m.output + lam @ m.U @ m.U.mT @ lam) / file.gamma
            assert float(torch.linalg.eigvalsh((excess + excess.mT) / 2).min()) >= 2 * file.epsilon * (1 - 1e-9)
        # without the zeros, what wraps around comes on top, and the certificate is about another operator
        everywhere = torch.ones_like(m.free)
        exceeded.append(gain(m, m.wrapped, everywhere, seed) / file.gamma)
    assert 0.9 < max(attained) <= 1 + 1e-9
    assert max(exceeded) > 1.2


def test_the_defect_is_there_where_nothing_is_padded(tmp_path: Path) -> None:
    """The module of the reference code alone, on an image as large as its grid: its own γ does not hold."""
    file = write(
        tmp_path, normalised=False, metric="C,H,W", image=(1, 1), pool=1, gamma=1.0,
        **{
            "psi": torch.zeros(2, 3, 3, dtype=torch.float64),
            "U.weight": torch.full((2, 1, 3, 3), 0.3, dtype=torch.float64),
            "Wout.weight": torch.ones(1, 18, dtype=torch.float64) / 2,
            "Wout.bias": torch.zeros(1, dtype=torch.float64),
            "g": torch.tensor(1e-3, dtype=torch.float64),
            "h": torch.tensor(1e-3, dtype=torch.float64),
        },
    )  # fmt: skip
    m = matrices(file)
    assert gain(m, m.wrapped, torch.ones_like(m.free), 0) > 1.3
    assert gain(m, m.U, m.free, 0) <= 1


def test_bounds_of_the_weight_and_certificates(tmp_path: Path) -> None:
    for seed, psi in enumerate(SHAPES):
        file = write(tmp_path, seed=seed, metric=psi)
        layer = file.load()
        with torch.no_grad():
            weights = layer.weights()
        assert isinstance(weights.state, Scaled) and isinstance(weights.state.inner, MinusGram)
        assert weights.state.inner.factor.rank == (3 if psi.endswith("1,1") else 3 + 36)
        assert weights.metric is not None
        found = weights.state.operator(weights.metric).bounds
        exact = Dense(weights.state.to_dense()).operator(weights.metric).bounds
        assert 0 < found.monotonicity <= exact.monotonicity * (1 + 1e-9)
        assert found.lipschitz >= exact.lipschitz * (1 - 1e-9)
        certificate = certified_lipschitz(layer)
        assert certificate.bound <= file.gamma * (1 + 1e-9)
        assert gain(matrices(file), matrices(file).U, matrices(file).free, seed) <= certificate.bound
        assert BuiltIn().certify(lipschitz_system(layer)).bound <= file.gamma * (1 + 1e-6)


def test_pairs_of_inputs_attain_less_than_is_certified(tmp_path: Path) -> None:
    layer = write(tmp_path, metric="C,H,W", normalised=False, image=(3, 3), pool=1, loud=4.0).load()
    report = lipschitz_report(layer, searches=(PairAscent(steps=4),), starts=1)
    assert 0.05 < report.attained <= report.certified <= 1 + 1e-9
    pairs = pairwise_lipschitz(layer).bounds
    assert pairs.shape == (3, 3) and float(pairs.max()) <= 2**0.5 * report.certified * (1 + 1e-9)


def test_a_large_network_names_what_is_certified(tmp_path: Path) -> None:
    layer = write(tmp_path, metric="1,1,1,1", image=(24, 24), pool=2, gamma=0.25).load()
    with pytest.raises(PreconditionError, match=r"\blipschitz = 0\.25"):
        certified_lipschitz(layer)
    with torch.no_grad():
        weights = layer.weights()
        x = torch.randn(2, layer.in_features, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        solution = layer.solve(x)
    assert weights.metric is not None and solution.error_bound is not None
    assert weights.state.operator(weights.metric).bounds.monotonicity > 0


def test_it_can_be_trained_further_and_stays_certified(tmp_path: Path) -> None:
    layer = write(tmp_path, metric="C,H,W", normalised=False).load()
    x = torch.randn(2, layer.in_features, dtype=torch.float64)
    optimiser = torch.optim.SGD(layer.parameters(), lr=0.05)
    before = layer.weights().state.to_dense().detach()
    for _ in range(2):
        optimiser.zero_grad()
        loss = (layer(x) - 1).square().mean()
        loss.backward()
        assert all(p.grad is not None and bool(torch.isfinite(p.grad).all()) for p in layer.parameters())
        optimiser.step()
    assert not torch.allclose(layer.weights().state.to_dense().detach(), before)
    assert BuiltIn().certify(lipschitz_system(layer)).bound <= 1 + 1e-6


def test_what_does_not_fit_is_named(tmp_path: Path) -> None:
    file = write(tmp_path)
    with pytest.raises(InputError, match=r"\blipschitz\b"):
        load_reference(file.path, image=(4, 4))
    with pytest.raises(InputError, match=r"\blipschitz\b"):
        load_reference(file.path, image=(4, 4), lipschitz=-1.0)
    with pytest.raises(InputError, match=r"\bimage\b"):
        load_reference(file.path, image=(5, 5), lipschitz=1.0)

    def broken(named: str, **changes: torch.Tensor) -> None:
        path = write(tmp_path, seed=1, **changes).path
        with pytest.raises(InputError, match=rf"\b{named}\b"):
            load_reference(path, image=(4, 4), lipschitz=1.0)

    one = torch.tensor(1.0, dtype=torch.float64)
    broken("psi", psi=torch.zeros(1, 2, 5, 6))
    broken("extra", extra=one)
    broken("u", u=-one)
    broken("a", a=-one)
    broken("g", g=torch.ones(2))
    broken(r"A\.weight", **{"A.weight": torch.full((2, 2, 3, 3), math.nan)})
    broken("B", **{"B.weight": torch.ones(2, 3, 3, 3)})
    broken(r"U\.weight", **{"U.weight": torch.ones(2, 3)})
    content = torch.load(file.path, weights_only=True)
    del content["mon.linear_module.psi"], content["mon.linear_module.u"]
    torch.save(content, file.path)
    with pytest.raises(InputError, match=r"\bu\b"):
        load_reference(file.path, image=(4, 4), lipschitz=1.0)
