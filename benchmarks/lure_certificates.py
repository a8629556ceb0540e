"""Certificates of Lur'e systems against what they must equal, and what they must not exceed.

* the circle criterion of firing-rate and Hopfield flows beside the parabola test, with the same multiplier;
* the gradient on log Λ beside the semidefinite program, for fields that are networks of one to three hidden layers;
* process CPU time of the bisection by Hamiltonian matrices at 200 states and 200 neurons;
* rates and gains of random systems, extreme ones among them, beside what single vertices of the slopes, switching
  between them at random, and the best inputs against switching slopes show. No certified number may be beyond.

``--small`` for a few seconds' version; ``--count`` and ``--seed`` for other random systems.
"""

import argparse
from pathlib import Path

import command_line
import torch
from torch import Tensor

from contracting.certificates import (
    CertificateError,
    CircleCriterion,
    FiringRateSystem,
    HopfieldSystem,
    ParabolaTest,
    SectorInequality,
    certify_gain,
)
from contracting.certificates.systems import vertices
from contracting.errors import PreconditionError
from contracting.lure.system import LureSystem
from equilibrium.experiments.timing import Times, in_turn, timer
from equilibrium.files import output_directory

KINDS = ("plain", "scalar", "cooperative", "intervals", "graded", "stiff", "nearly ill-posed", "network")
_TOLERANCE = 1e-7  # By so much of its size a number that was computed without care for rounding may be off.
_STEPS = 24  # of the implicit midpoint rule, which keeps every quadratic dissipation inequality exactly
_WORDS = 16  # random sequences of vertices


def normal(*shape: int, generator: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def loop_of(W: Tensor, *, hopfield: bool) -> LureSystem:
    """The firing-rate or Hopfield flow of a weight."""
    identity = torch.eye(len(W), dtype=torch.float64)
    return LureSystem(A=-identity, B=W if hopfield else identity, C=identity if hopfield else W, D=torch.zeros_like(W))


def against_the_parabola(count: int) -> float:
    """The largest difference between the rates of the circle criterion and of the parabola test."""
    worst = 0.0
    for seed in range(count):
        g = torch.Generator().manual_seed(seed)
        n = 2 + seed % 7
        W = 1.5 * normal(n, n, generator=g) / n**0.5
        Q = torch.rand(n, generator=g, dtype=torch.float64) + 0.5
        for hopfield, kind in ((False, FiringRateSystem), (True, HopfieldSystem)):
            circle = CircleCriterion(multiplier=Q).certify(loop_of(W, hopfield=hopfield)).rate
            worst = max(worst, abs(circle - ParabolaTest(multiplier=Q).certify(kind(W=W)).rate))
    return worst


def network(n: int, hidden: tuple[int, ...], generator: torch.Generator) -> LureSystem:
    """s' = As + MLP(s) as matrices: D strictly block lower triangular."""
    m, at = sum(hidden), 0
    B, C, D = torch.zeros(n, m).double(), torch.zeros(m, n).double(), torch.zeros(m, m).double()
    C[: hidden[0]] = normal(hidden[0], n, generator=generator) / n**0.5
    for before, after in zip(hidden, hidden[1:], strict=False):
        D[at + before : at + before + after, at : at + before] = (
            normal(after, before, generator=generator) / before**0.5
        )
        at += before
    B[:, at:] = normal(n, hidden[-1], generator=generator) / hidden[-1] ** 0.5
    return LureSystem(A=-torch.eye(n).double() + 0.3 * normal(n, n, generator=generator) / n**0.5, B=B, C=C, D=D)


def against_the_program(sizes: tuple[int, ...], depths: tuple[int, ...]) -> list[tuple[int, int, float, float]]:
    """n, hidden layers, the rate by gradient, and by how much that of the program is larger."""
    rows = []
    for n in sizes:
        for depth in depths:
            system = network(n, (n + 2,) * depth, torch.Generator().manual_seed(100 * n + depth))
            rate = CircleCriterion().certify(system).rate
            rows.append((n, depth, rate, SectorInequality().certify(system).rate - rate))
    return rows


def bisection_time(size: int) -> tuple[Times, float]:
    """Times of a certificate at ``size`` states and neurons, and its rate."""
    g = torch.Generator().manual_seed(0)
    A = normal(size, size, generator=g) / size**0.5 - 2 * torch.eye(size, dtype=torch.float64)
    B, C, D = (share * normal(size, size, generator=g) / size**0.5 for share in (0.5, 1.0, 0.3))
    system, rates = LureSystem(A=A, B=B, C=C, D=D), []
    run = timer(lambda: rates.append(CircleCriterion().certify(system).rate))
    return in_turn({"bisection": run}, rounds=3, shortest=0.01, budget=20.0)["bisection"], rates[-1]


def random_system(kind: str, seed: int) -> LureSystem:
    """A Lur'e system with two inputs and outputs."""
    g = torch.Generator().manual_seed(seed)
    n, m = (int(torch.randint(low, 5, (), generator=g)) for low in (1, 1))
    if kind == "scalar":
        n = m = 1
    A = 0.7 * normal(n, n, generator=g) - (1 + 2 * torch.rand((), generator=g)) * torch.eye(n, dtype=torch.float64)
    B, C = normal(n, m, generator=g) / m**0.5, normal(m, n, generator=g) / n**0.5
    D = 0.5 * normal(m, m, generator=g) / m**0.5
    ports = {
        "B2": normal(n, 2, generator=g), "D12": 0.5 * normal(m, 2, generator=g), "C2": normal(2, n, generator=g),
        "D21": 0.5 * normal(2, m, generator=g), "D22": 0.3 * normal(2, 2, generator=g),
    }  # fmt: skip
    low, high = torch.zeros(m).double(), torch.ones(m).double()
    if kind == "cooperative":
        A, B, C, D = A.abs() - torch.diag(A.abs().diagonal() + 2), 0.5 * B.abs(), 0.5 * C.abs(), 0.3 * D.abs()
        ports = {name: value.abs() for name, value in ports.items()}
    if kind == "network":
        found = network(n, (m, m), g)
        A, B, C, D, m = found.A, found.B, found.C, found.D, 2 * m
        low, high = torch.zeros(m).double(), torch.ones(m).double()
        ports |= {"D12": normal(m, 2, generator=g), "D21": normal(2, m, generator=g)}
    if kind in ("intervals", "graded"):
        low = 2 * torch.rand(m, generator=g, dtype=torch.float64) - 1
        high = low + (1 - low) * torch.rand(m, generator=g, dtype=torch.float64) * (seed % 3 > 0)
    if kind == "stiff":
        root = 10 ** (3 * torch.rand(n, generator=g, dtype=torch.float64))
        A, B, C = A * root[:, None] * root, B * root[:, None], C * root
    if kind == "nearly ill-posed":  # 2 − D − Dᵀ has the smallest eigenvalue 1e-6
        D = D - (torch.linalg.eigvalsh(D + D.mT)[-1] / 2 - 1 + 1e-6) * torch.eye(m, dtype=torch.float64)
    system = LureSystem(A=A, B=B, C=C, D=D, slopes=(low, high), **ports)
    if kind == "graded":
        states, neurons = (10 ** (12 * torch.rand(size, generator=g, dtype=torch.float64) - 6) for size in (n, m))
        system = system.rescaled(states, neurons)
    return system


class Shown:
    """What a system does at the vertices of its slopes, and while these switch at random."""

    def __init__(self, system: LureSystem, seed: int):
        self.J = torch.cat(list(vertices((system.low, system.high), system.neurons)))
        self.F, self.B, self.C, self.D = closed(system, self.J)
        self.generator = torch.Generator().manual_seed(seed)

    @property
    def rate(self) -> float:
        """No larger rate is possible in any norm."""
        return -float(torch.linalg.eigvals(self.F).real.max())

    def growth(self, metric: object, rate: float) -> float:
        """log(largest growth of a switching trajectory in the metric) + rate·time; at most 0 where the rate holds."""
        worst = -float("inf")
        unit = 1 / max(float(torch.linalg.matrix_norm(self.F, 2).max()), 1e-300)
        for _ in range(_WORDS):
            picks = torch.randint(len(self.F), (3,), generator=self.generator)
            times = 3 * unit * torch.rand(3, generator=self.generator, dtype=torch.float64)
            moved = torch.eye(self.F.shape[-1], dtype=torch.float64)
            for pick, duration in zip(picks.tolist(), times.tolist(), strict=True):
                moved = torch.linalg.matrix_exp(self.F[pick] * duration) @ moved
            worst = max(worst, float(metric.operator_norm(moved).log()) + rate * float(times.sum()))
        return worst

    def gain(self) -> float:
        """The largest gain of a vertex at a frequency, and of the best input against random switching slopes."""
        poles = torch.linalg.eigvals(self.F)
        fast, slow = float(poles.abs().max()), max(float(poles.abs().min()), 1e-9)
        grid = torch.logspace(-1, 1, 60) * (fast / slow) ** torch.linspace(0, 1, 60) * slow
        omega = torch.cat([torch.zeros(1), grid, poles.imag.abs().flatten()[:200]]).to(torch.complex128)
        resolvent = 1j * omega[:, None, None] * torch.eye(self.F.shape[-1]) - self.F[:, None]
        transfer = self.C.to(omega.dtype)[:, None] @ torch.linalg.solve(resolvent, self.B.to(omega.dtype)[:, None])
        best = float(torch.linalg.matrix_norm(transfer + self.D[:, None], 2).max())
        for step in (1 / fast, 1 / (fast * slow) ** 0.5, 1 / slow):
            best = max(best, float(torch.linalg.matrix_norm(self.response(step), 2)))
        return best

    def response(self, step: float) -> Tensor:
        """All inputs of the midpoint rule to all its outputs, slopes switching at random: block lower triangular."""
        n, k, p = self.F.shape[-1], self.B.shape[-1], self.C.shape[-2]
        state, rows = torch.zeros(n, _STEPS * k).double(), []
        for index in range(_STEPS):
            pick = int(torch.randint(len(self.F), (), generator=self.generator))
            u = torch.zeros(k, _STEPS * k).double()
            u[:, index * k : (index + 1) * k] = torch.eye(k)
            left = torch.eye(n).double() - step / 2 * self.F[pick]
            middle = torch.linalg.solve(left, state + step / 2 * self.B[pick] @ u)
            rows.append(self.C[pick] @ middle + self.D[pick] @ u)
            state = 2 * middle - state
        return torch.cat(rows).reshape(_STEPS * p, _STEPS * k)


def closed(system: LureSystem, J: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The linear systems at diagonal slopes, (vertices, m)."""
    loop = torch.diag_embed(J) @ torch.linalg.inv(torch.eye(system.neurons).double() - system.D * J[:, None, :])
    into = torch.cat([system.C, system.D12], 1)
    state, out = system.B @ loop @ into, system.D21 @ loop @ into
    n = system.size
    return system.A + state[..., :n], system.B2 + state[..., n:], system.C2 + out[..., :n], system.D22 + out[..., n:]


def against_what_is_shown(kind: str, count: int, seed: int) -> dict[str, float]:
    """Of random systems: how many were certified, how many beyond the truth, and how close the closest were."""
    rates, gains, beyond, refused = [], [], 0, 0
    for index in range(count):
        system, optimise = random_system(kind, 10_000 * seed + index), 6 if index % 4 == 0 else 0
        try:
            certificate = CircleCriterion(optimise=optimise).certify(system)
        except (CertificateError, PreconditionError):
            refused += 1
            continue
        shown = Shown(system, index)
        size = abs(shown.rate) + float(torch.linalg.eigvals(shown.F).abs().max())
        worst = max(
            certificate.rate - shown.rate, float(certificate.metric.matrix_measure(shown.F).max()) + certificate.rate
        )
        beyond += worst > _TOLERANCE * size or shown.growth(certificate.metric, certificate.rate) > _TOLERANCE
        rates.append((shown.rate - certificate.rate) / max(abs(shown.rate), 1e-3 * size))
        if certificate.rate > 0:
            try:
                gain = certify_gain(system, optimise=optimise).gain
            except (CertificateError, PreconditionError):
                refused += 1
                continue
            seen = shown.gain()
            beyond += seen > gain * (1 + _TOLERANCE)
            gains.append(gain / seen - 1)
    return {
        "systems": count, "refused": refused, "beyond": beyond, "gains": len(gains),
        "rate: closest": min(rates, default=float("nan")), "rate: median": _median(rates),
        "gain: closest": min(gains, default=float("nan")), "gain: median": _median(gains),
    }  # fmt: skip


def _median(values: list[float]) -> float:
    return float(torch.tensor(values).median()) if values else float("nan")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=command_line.whole, default=2000, help="random systems (default 2000)")
    parser.add_argument("--seed", type=command_line.whole, default=1)
    parser.add_argument("--out", type=command_line.path, default=Path("out") / "lure-certificates")
    parser.add_argument("--small", action="store_true", help="a few seconds' version")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    folder = output_directory(options.out)
    lines = []
    parabola = against_the_parabola(2 if options.small else 40)
    lines.append(f"parabola test: the rates of {2 if options.small else 40} weights differ by at most {parabola:.1e}")
    program = against_the_program((2,) if options.small else (2, 3, 5, 8), (1, 2) if options.small else (1, 2, 3))
    for n, depth, rate, difference in program:
        lines.append(f"n = {n}, hidden layers {depth}: rate {rate:9.6f} by gradient, {difference:+.1e} by the program")
    size = 20 if options.small else 200
    times, rate = bisection_time(size)
    lines.append(f"bisection, n = m = {size}: {times.text('cpu', 1)} s of process time, rate {rate:.6f}")
    kinds = {}
    for kind in KINDS:
        each = 1 if options.small else -(-options.count // len(KINDS))
        kinds[kind] = found = against_what_is_shown(kind, each, options.seed)
        lines.append(f"{kind:17s} " + ", ".join(f"{name} {value:.3g}" for name, value in found.items()))
        print(lines[-1], flush=True)
    command_line.finish(
        folder,
        "\n".join(lines) + "\n",
        parabola=parabola,
        program=program,
        bisection={"size": size, "times": vars(times), "rate": rate},
        kinds=kinds,
    )


if __name__ == "__main__":
    command_line.run(main)
