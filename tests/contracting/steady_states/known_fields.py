"""Fields with attracting steady states that are known, each as a contract to inherit from."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from contracting import (
    Automatic,
    Dense,
    DormandPrince,
    DrivenFlow,
    EquilibriumProblem,
    FiringRate,
    Hopfield,
    Implicit,
    InputFlow,
    LinearFlow,
    LureFlow,
    Method,
    SemismoothNewton,
    Stop,
    Tanh,
    WeightedL2,
)
from contracting.contracts import SteadyStateContract
from contracting.contracts.base import DOUBLE, draw, monotone

ROWS = 3


def tensor(*rows: object) -> Tensor:
    return torch.tensor(rows, dtype=DOUBLE)


class Planted(SteadyStateContract):
    """A field g(s) − g(a) + …, that is at rest at an answer a by construction."""

    step, hull = 0.1, (0.2, 8 + 2j)

    def start(self) -> Tensor:
        return self.answer() + 0.3 * draw(*self.answer().shape, seed=9)

    def raw(self, s: Tensor) -> Tensor:
        raise NotImplementedError

    def field(self) -> object:
        rest = self.raw(self.answer())
        return lambda s: self.raw(s) - rest


class Scalar(Planted):
    def answer(self) -> Tensor:
        return tensor([0.5], [-1.2], [0.0])

    def raw(self, s: Tensor) -> Tensor:
        return -s - s**3


class Polynomial(Planted):
    def answer(self) -> Tensor:
        return 0.5 * draw(ROWS, 3)

    def raw(self, s: Tensor) -> Tensor:
        return -s - s**3 + s.roll(1, 1) * s.roll(2, 1) * 0.3 + 0.5 * (s.roll(1, 1) - s.roll(2, 1))


class Linear(Planted):
    """Rates from 1 to 200, not in the coordinates of the state."""

    step, hull = 0.008, (0.9, 210.0)

    def answer(self) -> Tensor:
        return draw(ROWS, 4, seed=2)

    def field(self) -> LinearFlow:
        basis = torch.linalg.qr(draw(4, 4)).Q
        A = -basis @ torch.diag(tensor(1.0, 10.0, 50.0, 200.0)) @ basis.mT
        return LinearFlow(A, -self.answer() @ A.mT)


class VeryStiff(Linear):
    """Rates from 1e-3 to 1e6, for which no explicit method is made, and each entry of f in units of its own."""

    each_entry, long_step = True, 1e4

    def field(self) -> LinearFlow:
        rates = tensor(1e-3, 1.0, 1e3, 1e6)
        A = -torch.diag(rates) + 0.5 * rates[:, None] * torch.triu(torch.ones(4, 4, dtype=DOUBLE), 1)
        return LinearFlow(A, -self.answer() @ A.mT)

    def methods(self) -> dict[str, Method]:
        return self.implicit()


class NonNormal(Planted):
    step, hull = 0.4, (0.9, 2.1)

    def answer(self) -> Tensor:
        return draw(ROWS, 2, seed=4)

    def raw(self, s: Tensor) -> Tensor:
        return s @ tensor([-1.0, 100.0], [0.0, -2.0]).mT


class FitzHughNagumo(Planted):
    hull = (0.05, 8 + 2j)

    def answer(self) -> Tensor:
        return tensor([-1.2, -0.6], [-1.3, -0.7], [1.4, 2.0])

    def raw(self, s: Tensor) -> Tensor:
        v, w = s.T
        return torch.stack([v - v**3 / 3 - w, 0.08 * (v - 0.8 * w)], 1)


class Toggle(SteadyStateContract):
    """Bistable: a(1 + b²) = 3 = b(1 + a²) where a + b = 3, ab = 1."""

    step, hull = 0.2, (0.2, 2.5)

    def answer(self) -> Tensor:
        high, low = (3 + 5**0.5) / 2, (3 - 5**0.5) / 2
        return tensor([high, low], [low, high], [high, low])

    def start(self) -> Tensor:
        return self.answer() + 0.1 * draw(3, 2)

    def field(self) -> object:
        return lambda s: 3 / (1 + s.flip(1) ** 2) - s


class ToggleInSingle(Toggle):
    accuracy = 1e-3

    def answer(self) -> Tensor:
        return super().answer().float()

    def start(self) -> Tensor:
        return super().start().float()


class Kinetics(Planted):
    """A + B → C and B + C → nothing, with rate constants 1e3 and 1, and an inflow of each."""

    step, hull = 0.01, (0.3, 130.0)

    def answer(self) -> Tensor:
        return tensor([1e-3, 0.1, 1.0], [2e-3, 0.05, 0.5])

    def start(self) -> Tensor:
        return self.answer() * tensor([1.3, 0.8, 1.2])

    def raw(self, s: Tensor) -> Tensor:
        a, b, c = s.T
        first, second = 1e3 * a * b, b * c
        return torch.stack([-first - a, -first - second - b, first - second - c], 1)


class Exponential(Planted):
    def answer(self) -> Tensor:
        return draw(ROWS, 2, seed=5)

    def raw(self, s: Tensor) -> Tensor:
        return -s.exp() + 0.2 * s.flip(1)


class LotkaVolterra(Planted):
    """In logarithms of the populations, with crowding."""

    hull = (0.2 + 2j, 3 + 2j)

    def answer(self) -> Tensor:
        return tensor([0.3, -0.2], [0.0, 0.0])

    def raw(self, s: Tensor) -> Tensor:
        prey, hunters = s.exp().T
        return torch.stack([-0.5 * prey - hunters, prey - 0.5 * hunters], 1)


class Kuramoto(Planted):
    """Four oscillators in a locked state, seen from the first."""

    def answer(self) -> Tensor:
        return 0.5 * draw(ROWS, 3, seed=7).tanh()

    def raw(self, s: Tensor) -> Tensor:
        phases = torch.cat([torch.zeros_like(s[:, :1]), s], 1)
        speed = torch.sin(phases[:, None, :] - phases[:, :, None]).mean(-1)
        return speed[:, 1:] - speed[:, :1]


class MLP(Planted):
    def answer(self) -> Tensor:
        return draw(ROWS, 4, seed=3)

    def raw(self, s: Tensor) -> Tensor:
        net = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 4))
        nn.utils.vector_to_parameters(0.2 * draw(148, seed=1).float(), net.parameters())
        return net.double()(s) - s


class Kinks(Planted):
    """Piecewise linear, by ReLU."""

    def answer(self) -> Tensor:
        return draw(ROWS, 5, seed=3)

    def raw(self, s: Tensor) -> Tensor:
        return 0.3 * torch.relu(s @ draw(5, 5).mT) - s


class Wide(Planted):
    """A hundred entries."""

    def answer(self) -> Tensor:
        return draw(2, 100, seed=3)

    def raw(self, s: Tensor) -> Tensor:
        return torch.tanh(s @ (0.5 * draw(100, 100) / 10).mT) - s


class Weighted(Planted):
    """z = σ(Wz + q) with a known z."""

    def problem(self) -> EquilibriumProblem:
        W, weights = monotone(5, seed=0)
        v = draw(ROWS, 5, seed=2)
        return EquilibriumProblem(
            linear=Dense(W), q=v - torch.tanh(v) @ W.mT, activation=Tanh(), metric=WeightedL2(weights)
        )


class FiringRates(Weighted):
    def answer(self) -> Tensor:
        return torch.tanh(draw(ROWS, 5, seed=2))

    def field(self) -> object:
        return FiringRate().bind(self.problem())


class Potentials(Weighted):
    def answer(self) -> Tensor:
        return draw(ROWS, 5, seed=2)

    def field(self) -> object:
        return Hopfield().bind(self.problem())


class Driven(FiringRates):
    """At t = 0.7 the moving input is that of the problem."""

    time = 0.7

    def field(self) -> object:
        problem = self.problem()
        return DrivenFlow(FiringRate().bind(problem), lambda t: problem.q + (t - 0.7))


class GivenInput(Planted):
    """A model z = f(z, x) under one input for each row."""

    def answer(self) -> Tensor:
        return draw(ROWS, 2, seed=6).tanh()

    def field(self) -> object:
        x = torch.atanh(self.answer()) - 0.3 * self.answer().flip(1)
        return InputFlow(lambda s, x: torch.tanh(0.3 * s.flip(1) + x), x)


class Implied(Planted):
    """A field with an implicit layer inside: s' = −s + w + c, w = tanh(s + Dw)."""

    accuracy = 1e-5

    def methods(self) -> dict[str, Method]:
        return {"Automatic": Automatic(), "SemismoothNewton": SemismoothNewton(), "DormandPrince": DormandPrince()}

    def answer(self) -> Tensor:
        return draw(2, 3, seed=8)

    def raw(self, s: Tensor) -> Tensor:
        D = -0.5 * torch.eye(3, dtype=DOUBLE) + draw(1, 3, 3)[0].tril(-1)
        problem = EquilibriumProblem(linear=Dense(D), q=s, activation=Tanh())
        w = Implicit().equilibrium(problem, SemismoothNewton(), Stop(rtol=1e-13))
        return w - 2 * s


class Lure(Implied):
    """The same as a Lur'e system with a full D, at rest at s = −w(s) + c for a known w."""

    def field(self) -> LureFlow:
        s, D = self.answer(), torch.tensor([[-1.0, 0.4, 0.2], [-0.3, -0.8, 0.5], [0.1, -0.6, -1.2]], dtype=DOUBLE)
        w = torch.tanh(draw(2, 3, seed=3))
        identity = torch.eye(3, dtype=DOUBLE)
        return LureFlow(
            A=-identity, B=-identity, C=identity, D=D, activation=Tanh(), e=s + w, q=torch.atanh(w) - s - w @ D.mT,
            stop=Stop(rtol=1e-13),
        )  # fmt: skip


class LargeConstant(Planted):
    """An entry of 1e8 that does not move beside one that has a way to go, for which it is no excuse."""

    def answer(self) -> Tensor:
        return tensor([1e8, 0.3], [-1e8, 2.0])

    def start(self) -> Tensor:
        return self.answer() + tensor([0.0, 1.0])

    def raw(self, s: Tensor) -> Tensor:
        return torch.stack([0 * s[:, 0], -s[:, 1]], 1)

    def methods(self) -> dict[str, Method]:
        singular = ("SemismoothNewton", "NewtonKrylov")
        return {name: method for name, method in super().methods().items() if name not in singular}


class Scales(Planted):
    """Entries of 1e6 and 1e-6, each to be found as well as its own size allows."""

    each_entry = True

    def answer(self) -> Tensor:
        return tensor([2e6, 3e-6], [-1e6, 1e-6])

    def start(self) -> Tensor:
        return 2 * self.answer()

    def raw(self, s: Tensor) -> Tensor:
        units = tensor([1e6, 1e-6])
        scaled = s / units
        return units * (-scaled - 0.1 * scaled**3 + 0.3 * scaled.flip(1) * tensor([1.0, -1.0]))
